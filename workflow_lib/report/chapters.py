"""The parts of a report that depend on the task: the chapter on the best run, the second learning curve, the words."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_lib.results.read_runs import Row, RunResults

MAX_MATRIX_CLASSES = 40
MAX_CONFUSED_PAIRS = 15
MAX_POINTS = 2000  # of a scatter plot
MAX_TARGETS = 4  # with figures
BINS = 30
BLUE, GREY = "#3b82f6", "#8a7f76"  # as in report.js


@dataclass(frozen=True)
class Chapter:
    """What the page shows of one task."""

    name: str  # anchor, and name of the template
    title: str
    metric: str  # drawn beside the loss
    metric_label: str
    output: str  # name of one output of the model
    unit: str  # of the tolerance of the ONNX check
    content: Callable[[RunResults, Path], dict[str, Any]]  # values for the template; its "figures" are drawn


def classes(run: RunResults, results: Path) -> dict[str, Any]:
    """Return the confusion matrix and the most confused pairs of classes."""
    return {"matrix": matrix(run.evaluation), "confused": confused(run.evaluation)}


def matrix(evaluation: Row) -> list[list[tuple[int, float]]] | None:
    """Return each count with its share of the row, or None if there are too many classes to show."""
    if len(evaluation["classes"]) > MAX_MATRIX_CLASSES:
        return None
    return [[(count, count / max(1, sum(row))) for count in row] for row in evaluation["confusion"]]


def confused(evaluation: Row) -> list[Row]:
    """Return the pairs of classes that the model confuses, most frequent first."""
    names, counts = evaluation["classes"], evaluation["confusion"]
    pairs = [
        {"target": names[i], "predicted": names[j], "count": count, "share": count / sum(row)}
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if count and i != j
    ]
    return sorted(pairs, key=lambda pair: -pair["count"])[:MAX_CONFUSED_PAIRS]


def predictions(run: RunResults, results: Path) -> dict[str, Any]:
    """Return two figures a target: predicted against true values, and the distribution of the errors."""
    with (results / "runs" / run.name / "predictions.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    targets = (len(header) - 1) // 2  # columns: the sample, then the true and the predicted value of each target
    figures = []
    for target in range(min(MAX_TARGETS, targets)):
        true, predicted = ([float(row[1 + 2 * target + side]) for row in rows] for side in (0, 1))
        suffix = f" of target {target}" if targets > 1 else ""
        figures.append(scatter(f"scatter-{target}", f"Predicted against true{suffix}", true, predicted))
        figures.append(histogram(f"errors-{target}", f"Errors{suffix}", true, predicted))
    return {"figures": figures}


def scatter(name: str, label: str, true: Sequence[float], predicted: Sequence[float]) -> Row:
    """Return the figure of predicted against true values, with the diagonal; every n-th point if there are many."""
    every = math.ceil(len(true) / MAX_POINTS)
    ends = [min(*true, *predicted), max(*true, *predicted)]
    line = {"type": "scatter", "mode": "lines", "x": ends, "y": ends, "hoverinfo": "skip"}
    points = {"type": "scatter", "mode": "markers", "x": true[::every], "y": predicted[::every]}
    data = [
        line | {"line": {"color": GREY, "dash": "dot", "width": 1.5}},
        points | {"marker": {"color": BLUE, "size": 6, "opacity": 0.6}},
    ]
    axes = {"xaxis": {"title": {"text": "true"}}, "yaxis": {"title": {"text": "predicted"}}}
    return {"name": name, "label": label, "data": data, "layout": {**axes, "showlegend": False, "hovermode": "closest"}}


def histogram(name: str, label: str, true: Sequence[float], predicted: Sequence[float]) -> Row:
    """Return the figure of the errors, predicted - true."""
    errors = [guess - value for guess, value in zip(predicted, true, strict=True)]
    low, width = min(errors), (max(errors) - min(errors)) / BINS or 1.0  # equal errors need a width, too
    counts = [0] * BINS
    for error in errors:
        counts[min(BINS - 1, int((error - low) / width))] += 1
    bars = {"type": "bar", "x": [low + (place + 0.5) * width for place in range(BINS)], "y": counts, "width": width}
    axes = {"xaxis": {"title": {"text": "predicted - true"}}, "yaxis": {"title": {"text": "test samples"}}}
    return {"name": name, "label": label, "data": [bars], "layout": {**axes, "showlegend": False, "bargap": 0}}


CHAPTERS = {
    "classification": Chapter("classes", "Classes", "accuracy", "Accuracy", "logit", "", classes),
    "regression": Chapter(
        "predictions",
        "Predictions",
        "mae",
        "Mean absolute error",
        "prediction",
        " standard deviations of the target",
        predictions,
    ),
    "language": Chapter("text", "Text", "accuracy", "Accuracy", "logit", "", lambda run, results: {}),
}
