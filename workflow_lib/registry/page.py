"""The page on the registry: which version the best run of an experiment is, all versions, and all decisions.

It is a page of its own, beside the report, which is complete before its best run is registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import plugins
from workflow_lib.comparison.text import value_of
from workflow_lib.files import write_atomic
from workflow_lib.registry import overview
from workflow_lib.registry.aliases import Decision
from workflow_lib.registry.overview import State
from workflow_lib.report import page
from workflow_lib.report.runs_table import PAGE

if TYPE_CHECKING:
    from workflow_lib.config.registry import Registry


def write_page(settings: Registry, experiment: str, number: int, decision: Decision, output: Path) -> None:
    """Write the page, with the decision about the version of the experiment; `number` is that of the version."""
    found = overview.of_model(settings.folder, settings.name, number)
    history = found.decisions.get(settings.alias, ())
    text = page.templates().get_template("registry.html").render(
        found=found,
        own=next(version for version in found.versions if version.number == number),
        alias=settings.alias,
        experiment=experiment,
        decision=decision,
        states={version.number: state_of(version, history, settings.alias) for version in found.versions},
        history=history[::-1],
        labels={name: label for facts in plugins.all_facts().values() for name, label in facts.metrics.items()},
        value_of=value_of,
        page=PAGE,
        style=page.asset("report.css"),
        script=page.asset("tables.js"),
    )  # fmt: skip
    write_atomic(output, text)


def state_of(version: State, history: Sequence[Decision], alias: str) -> str:
    """Return if a version has the alias, had it, or did not get it, by the decisions, oldest first."""
    if version.problem:
        return version.problem
    held = [(made["holder"] or {}).get("number") == version.number for made in history]
    if held and held[-1]:
        return alias
    if True in held:
        last = len(held) - 1 - held[::-1].index(True)
        return f"was {alias} until {history[last + 1]['time'][:16]}"
    return f"not promoted to {alias}" if any(made["version"]["number"] == version.number for made in history) else "–"
