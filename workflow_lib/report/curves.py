"""The chapter on learning curves: the runs that are drawn, and their values."""

from __future__ import annotations

from collections.abc import Sequence

from workflow_lib.results.read_runs import TUNED, Row, RunResults

MAX_CURVES = 30


def drawn_runs(runs: Sequence[RunResults]) -> list[RunResults]:
    """Return the best of the runs, which are sorted best first, and the tuned run."""
    return [run for place, run in enumerate(runs) if place < MAX_CURVES or run.name == TUNED]


def describe_drawn(runs: Sequence[RunResults], drawn: Sequence[RunResults]) -> str:
    """Return a phrase for the page that says which runs are drawn."""
    if len(drawn) == len(runs):
        return "every run"
    return f"the {MAX_CURVES} best runs" + (" and the tuned one" if len(drawn) > MAX_CURVES else "")


def curve(run: RunResults, metric: str) -> Row:
    """Return the columns of the run's history that report.js draws, with None where a column is missing."""
    names = ("epoch", "train_loss", "val_loss", f"val_{metric}")
    columns = {name: [row.get(name) for row in run.history] for name in names}
    return {"name": run.name, "best_epoch": run.best()[1], **columns}
