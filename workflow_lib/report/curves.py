"""The chapter on learning curves: the runs that are drawn, and their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from workflow_lib.results.read_runs import TUNED, Row, RunResults

MAX_CURVES = 30

Unit = Literal["epoch", "step"]


def drawn_runs(runs: Sequence[RunResults]) -> list[RunResults]:
    """Return the best of the runs, which are sorted best first, and the tuned run."""
    return [run for place, run in enumerate(runs) if place < MAX_CURVES or run.name == TUNED]


def describe_drawn(runs: Sequence[RunResults], drawn: Sequence[RunResults]) -> str:
    """Return a phrase for the page that says which runs are drawn."""
    if len(drawn) == len(runs):
        return "every run"
    return f"the {MAX_CURVES} best runs" + (" and the tuned one" if len(drawn) > MAX_CURVES else "")


def curve(run: RunResults, metric: str, unit: Unit) -> Row:
    """Return the columns of the run's history that report.js draws over the unit, with None where one is missing."""
    columns = {name: [row.get(name) for row in run.history] for name in ("train_loss", "val_loss", f"val_{metric}")}
    epoch = run.best()[1]
    best = next((row[unit] for row in run.history if row["epoch"] == epoch), None)
    return {"name": run.name, "unit": unit, "best": best, "x": [row[unit] for row in run.history], **columns}


def unit_of(runs: Sequence[RunResults]) -> Unit:
    """Return the unit of the axis that the runs share: steps, if one of them is counted in steps."""
    return "step" if any(run.is_counted_in_steps for run in runs) else "epoch"
