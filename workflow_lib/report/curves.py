"""The chapter on learning curves: the runs that are drawn, and their values."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from workflow_lib.results import layout as results_layout
from workflow_lib.results.configurations import Configuration
from workflow_lib.results.read_runs import TUNED, Row, RunResults

MAX_CURVES = 40
MAX_POINTS = 400  # of a curve
MAX_METRICS = 40  # that can be chosen for the second figure
DIGITS = 6  # that are drawn; history.csv has all

Unit = Literal["epoch", "step"]


def drawn_runs(runs: Sequence[RunResults]) -> list[RunResults]:
    """Return the best of the runs, which are sorted best first, and the tuned run."""
    return [run for place, run in enumerate(runs) if place < MAX_CURVES or run.name == TUNED]


def describe_drawn(runs: Sequence[RunResults], drawn: Sequence[RunResults]) -> str:
    """Return a phrase for the page that says which runs are drawn."""
    if len(drawn) == len(runs):
        return "every run"
    return f"the {MAX_CURVES} best runs" + (" and the tuned one" if len(drawn) > MAX_CURVES else "")


def metrics_of(histories: Iterable[Sequence[Row]], curve: tuple[str, str]) -> dict[str, str]:
    """Return the columns that the second figure can show, with their labels: the task's `curve`, then all others."""
    first, found = f"val_{curve[0]}", dict.fromkeys(name for rows in histories for row in rows[:1] for name in row)
    others = [name for name in found if name.startswith("val_") and name not in (first, "val_loss")]
    labels = {name: name.removeprefix("val_").replace("_", " ") for name in sorted(others)[: MAX_METRICS - 1]}
    # a training step that validates by itself has no metric of the task but the loss, which the first figure shows
    return labels if labels and first == "val_loss" else {first: curve[1]} | labels


def curve(run: RunResults, metrics: Iterable[str], results: Path) -> Row:
    """Return the columns of the run's history that traces.js draws, with None where one is missing."""
    return columns_of(run.name, run.history, metrics, run.best()[1], results_layout.run_dir(results, run.name))


def columns_of(name: str, history: Sequence[Row], metrics: Iterable[str], best: int, folder: Path) -> Row:
    """Return the columns of a history, in which `best` is the epoch whose weights are kept.

    Of a long history, every n-th validation and the best one are drawn. `steps` has the training loss by step, if it
    was logged: the means of equally many consecutive rows.
    """
    every, last = math.ceil(len(history) / MAX_POINTS), len(history) - 1
    rows = [row for place, row in enumerate(history) if place % every == 0 or place == last or row["epoch"] == best]
    names = ("epoch", "step", "train_loss", "val_loss", *metrics)
    columns: Row = {column: [_short(row.get(column)) for row in rows] for column in names}
    kept = next((place for place, row in enumerate(rows) if row["epoch"] == best), None)
    return {"name": name, "best": kept, **columns, "steps": _steps(folder)}


def groups(drawn: Sequence[RunResults], configurations: Sequence[Configuration]) -> list[Row]:
    """Return the label and the drawn runs of each configuration that has more than one of them."""
    places = {run.name: place for place, run in enumerate(drawn)}
    found = []
    for number, configuration in enumerate(configurations, 1):
        runs = [places[run.name] for run in configuration.runs if run.name in places]
        settings = ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in configuration.settings.items())
        if len(runs) > 1:
            found.append({"name": f"{settings or f'configuration {number}'} ({len(runs)} runs)", "runs": runs})
    return found


def unit_of(runs: Sequence[RunResults]) -> Unit:
    """Return the unit of the axis that the runs share: steps, if one of them is counted in steps."""
    return "step" if any(run.is_counted_in_steps for run in runs) else "epoch"


def _steps(folder: Path) -> Row | None:
    """Return the steps and the training loss of the run's log of steps; None if steps were not logged."""
    path = folder / results_layout.STEPS
    if not path.exists():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(int(row["step"]), float(row["train_loss"])) for row in csv.DictReader(file)]
    size = max(1, math.ceil(len(rows) / MAX_POINTS))
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    losses = [_short(math.fsum(loss for _, loss in part) / len(part)) for part in parts]
    return {"step": [part[-1][0] for part in parts], "train_loss": losses}


def _short(value: float | None) -> float | int | None:
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
