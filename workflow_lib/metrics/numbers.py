"""Errors of predicted numbers, in the units of the data.

Arrays are float64 [samples, targets]. With several targets, a metric is the mean over them, as in scikit-learn.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workflow_lib.metrics.bootstrap import Resampling, intervals
from workflow_lib.metrics.outcomes import Outcomes, Told, check_columns, read


def measure(predicted: np.ndarray, targets: np.ndarray, how: Resampling, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return metrics with percentile bootstrap intervals, the metrics of each target, and quantiles of the errors.

    `names` are those of the targets, if they have names.
    """
    sample = Sample(predicted, targets)
    constant = "r2 compares with the mean, but a target of the test split never varies"
    reasons = {"r2": constant} if np.isnan(sample.each(sample.once)["r2"]).any() else {}
    return {
        "metrics": intervals(
            sample.scores, len(targets), how, reasons=reasons, lacking="have a target that never varies"
        ),
        "bootstrap": how.describe(),
        "per_target": [
            ({"target": names[number]} if names else {})
            | {name: None if np.isnan(values[number, 0]) else float(values[number, 0]) for name, values in each.items()}
            for each in [sample.each(sample.once)]
            for number in range(targets.shape[1])
        ],
        "residuals": _residuals(predicted - targets),
    }


class Sample:
    """A test split, prepared so that each metric is a function of the weights of the samples."""

    def __init__(self, predicted: np.ndarray, targets: np.ndarray) -> None:
        error = predicted - targets
        # sums of squares about the mean keep their precision for targets far from zero
        self.centred = targets - targets.mean(axis=0)
        self.sums = np.concatenate([np.abs(error), error**2, self.centred, self.centred**2], axis=1).T
        self.once = np.ones((len(targets), 1), dtype=np.int32)
        self.targets = targets.shape[1]

    def each(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return each metric [targets, columns] for each column of weights; NaN if it has no value."""
        total = weights.sum(axis=0)
        absolute, squared, centred, about_zero = np.split(self.sums @ weights.astype(np.float64), 4)
        spread = about_zero - centred**2 / total
        # a spread below the rounding error of the sums counts as zero: the target never varies
        tiny = np.finfo(np.float64).eps * np.maximum(about_zero, np.finfo(np.float64).tiny)
        r2 = np.full(spread.shape, np.nan)
        np.divide(squared, spread, out=r2, where=spread > tiny)
        return {"mae": absolute / total, "rmse": np.sqrt(squared / total), "r2": 1 - r2}

    def scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return each metric, the mean over the targets, for each column of weights."""
        return {name: values.mean(axis=0) for name, values in self.each(weights).items()}


def _residuals(residuals: np.ndarray) -> dict[str, list[float]]:
    """Return mean and quantiles of predicted - true for each target."""
    levels = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
    found = {name: np.quantile(residuals, level, axis=0).tolist() for name, level in levels.items()}
    return {"mean": residuals.mean(axis=0).tolist(), **found}


def columns_of(what: str, names: Sequence[str], targets: int) -> list[str]:
    """Return the name of the column of each target: `predicted`; of several `predicted(<name>)` or `predicted_0`."""
    if targets == 1:
        return [what]
    return [f"{what}({name})" for name in names] or [f"{what}_{number}" for number in range(targets)]


def name_in(column: str) -> str:
    """Return the name or number of a target in the name of its column; empty if there is one target."""
    name = column.removeprefix("target")
    return name[1:-1] if name.startswith("(") else name.removeprefix("_")


def predictions_csv(predicted: np.ndarray, targets: np.ndarray, names: Sequence[str] = ()) -> str:
    """Return one line a sample; every number reads back as the same float64."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    sides = zip(*(columns_of(what, names, targets.shape[1]) for what in ("target", "predicted")), strict=True)
    writer.writerow(["sample", *(name for pair in sides for name in pair)])
    pairs = np.stack([targets, predicted], axis=2).reshape(len(targets), -1)
    for index, row in enumerate(pairs.tolist()):
        writer.writerow([index, *map(repr, row)])
    return text.getvalue()


def outcomes(path: Path) -> Outcomes:
    """Return the predictions of a file that `predictions_csv` wrote.

    A sample is as wrong as the mean over its targets of the absolute error, in standard deviations of the target.
    """
    names, columns, values = read(path)
    targets, predicted = values[:, ::2], values[:, 1::2]
    labels = [name_in(column) for column in columns[::2]]
    check_columns(path, columns[1::2], [column.replace("target", "predicted", 1) for column in columns[::2]])
    spread = targets.std(axis=0)
    wrong = (np.abs(predicted - targets) / np.where(spread > 0, spread, 1.0)).mean(axis=1)

    def listed(row: np.ndarray) -> str:
        return ", ".join(f"{label} {six_digits(value)}".strip() for label, value in zip(labels, row, strict=True))

    return Outcomes(
        names=names,
        truth=targets,
        scores=lambda: Sample(predicted, targets).scores,
        wrong=wrong,
        told=lambda sample: Told(listed(targets[sample]), listed(predicted[sample]), float(wrong[sample])),
        certainty="Error in standard deviations",
    )


def six_digits(value: float) -> str:
    """Return a number of a target in at most six digits, which hides that float32 was stored."""
    return f"{value:,.0f}" if abs(value) >= 1e5 and abs(value) < 1e12 else f"{value:,.6g}"
