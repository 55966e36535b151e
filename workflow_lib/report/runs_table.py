"""The table of runs: as CSV, and as columns, from which the browser makes rows if the page has too many."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workflow_lib.results.provenance import accepted_words, inexact_words, started_from_words
from workflow_lib.results.read_runs import Row, RunResults
from workflow_lib.text import decimal

Column = dict[str, Any]
PAGE = 50  # table rows that are shown at once


def csv_text(table: Sequence[Row]) -> str:
    """Return the table as CSV, with every digit; a value that a run does not have is empty."""
    text = io.StringIO()
    names = dict.fromkeys(name for row in table for name in row)
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def headings(settings: Iterable[str]) -> dict[str, str]:
    """Return a heading for each dotted name: its last word other than `name`, or the whole name if two share it."""
    words = {name: name.removesuffix(".name").rpartition(".")[2] for name in settings}
    return {name: name if list(words.values()).count(word) > 1 else word for name, word in words.items()}


def columns(runs: Sequence[RunResults], settings: Iterable[str], metrics: Iterable[str]) -> list[Column]:
    """Return the columns that tables.js reads, in the order of report.html: every row, with every digit."""
    return [
        {"kind": "name", "values": [run.name for run in runs], "notes": dict(_notes(runs))},
        *({"kind": "text", "values": [shown_setting(run.settings[name]) for run in runs]} for name in settings),
        {"kind": "number", "digits": 4, "values": [run.best()[0] for run in runs]},
        *(_metric(runs, name, is_first=place == 0) for place, name in enumerate(metrics)),
        {"kind": "number", "digits": 0, "values": [run.length for run in runs]},
        {"kind": "count", "values": [run.train["parameters"] for run in runs]},
        {"kind": "number", "digits": 1, "values": [run.train["seconds"] for run in runs]},
        {"kind": "error", "values": [run.export_error() for run in runs]},
    ]


def packed(text: str) -> str:
    """Return the text compressed, in base64 for a script element; equal for equal texts."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()  # gzip would store the time of day


def shown_setting(value: Any) -> str:
    """Return a setting as it is written in an experiment file; a dash for None."""
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


def shown_interval(measured: Mapping[str, Any]) -> str | None:
    """Return the interval of a metric, or None if it has none."""
    if measured.get("low") is None:
        return None
    return f"{decimal(measured['low'], 3)}–{decimal(measured['high'], 3)}"


def _notes(runs: Sequence[RunResults]) -> Iterable[tuple[int, list[tuple[str, str]]]]:
    """Yield the index of each run that has notes, and its notes: pairs of HTML element and text, below its name."""
    for place, run in enumerate(runs):
        notes = [("code", run.train["digest"][:12])] if run.name != run.id else []
        if "accepted" in run.train:
            notes.append(("span", accepted_words(run.train["accepted"])))
        if "initialised" in run.train:
            notes.append(("span", started_from_words(run.train["initialised"])))
        if not run.train["exact"]:
            notes.append(("span", inexact_words()))
        if notes:
            yield place, notes


def _metric(runs: Sequence[RunResults], name: str, *, is_first: bool) -> Column:
    measured: list[Mapping[str, Any]] = [run.evaluation["metrics"].get(name, {}) for run in runs]
    column: Column = {"kind": "number", "digits": 4, "values": [value.get("value") for value in measured]}
    if reasons := {place: value["reason"] for place, value in enumerate(measured) if "reason" in value}:
        column["reasons"] = reasons
    if is_first and any(run.caution for run in runs):
        column["cautions"] = [
            run.caution if "value" in value else None for run, value in zip(runs, measured, strict=True)
        ]
    if is_first:
        column["intervals"] = [shown_interval(value) for value in measured]
    return column
