"""The table of runs of a report, by columns: what its page needs to show the rows that it does not hold as HTML."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workflow_lib.results.provenance import accepted_words
from workflow_lib.results.read_runs import RunResults

Column = dict[str, Any]
PAGE = 50  # rows of a table that are shown at once


def columns(runs: Sequence[RunResults], settings: Iterable[str], metrics: Iterable[str]) -> list[Column]:
    """The columns of the table as tables.js reads them, in the order of report.html; every row, with every digit."""
    return [
        {"kind": "name", "values": [run.name for run in runs], "notes": dict(_notes(runs))},
        *({"kind": "text", "values": [shown_setting(run.settings[name]) for run in runs]} for name in settings),
        {"kind": "number", "digits": 4, "values": [run.best()[0] for run in runs]},
        *(_metric(runs, name, has_interval=place == 0) for place, name in enumerate(metrics)),
        {"kind": "number", "digits": 0, "values": [run.train["epochs"] for run in runs]},
        {"kind": "count", "values": [run.train["parameters"] for run in runs]},
        {"kind": "number", "digits": 1, "values": [run.train["seconds"] for run in runs]},
        {"kind": "error", "values": [run.export_error() for run in runs]},
    ]


def packed(text: str) -> str:
    """The text, compressed, in letters that can stand in a script element; equal for equal texts."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def shown_setting(value: Any) -> str:
    """A swept value as it is written in an experiment file."""
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


def _notes(runs: Sequence[RunResults]) -> Iterable[tuple[int, list[tuple[str, str]]]]:
    """For each run that has any, by its place, the elements below its name and their texts."""
    for place, run in enumerate(runs):
        notes = [("code", run.train["digest"][:12])] if run.name != run.id else []
        if "accepted" in run.train:
            notes.append(("span", accepted_words(run.train["accepted"])))
        if notes:
            yield place, notes


def _metric(runs: Sequence[RunResults], name: str, *, has_interval: bool) -> Column:
    measured: list[Mapping[str, Any]] = [run.evaluation["metrics"].get(name, {}) for run in runs]
    column: Column = {"kind": "number", "digits": 4, "values": [value.get("value") for value in measured]}
    if reasons := {place: value["reason"] for place, value in enumerate(measured) if "reason" in value}:
        column["reasons"] = reasons
    if any(run.caution for run in runs):
        column["cautions"] = [
            run.caution if "value" in value else None for run, value in zip(runs, measured, strict=True)
        ]
    if has_interval:
        column["intervals"] = [shown_interval(value) for value in measured]
    return column


def shown_interval(measured: Mapping[str, Any]) -> str | None:
    """The interval of a metric below its value; None where it has none."""
    if measured.get("low") is None:
        return None
    return f"{shown_number(measured['low'], 3)}–{shown_number(measured['high'], 3)}"


def shown_number(value: float | None, digits: int = 4) -> str:
    """A number for people."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    large = abs(value) >= 1000
    return f"{value:,.{max(0, digits - 3)}f}" if large else f"{value:.{digits}f}"
