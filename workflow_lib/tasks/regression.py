"""Regression: numbers for each sample. The model returns standardised targets [B, targets]; loss: squared error."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from workflow_lib.tasks import AnySplit, Chapter, Columns, Measured, Objective, Onnx, Task, summed
from workflow_lib.tasks.facts import POSITIVE

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, device, nn

    from workflow_lib.config.experiment import Evaluate
    from workflow_lib.config.run import Training
    from workflow_lib.data import Manifest
    from workflow_lib.metrics.outcomes import Outcomes

MAX_TARGETS = 4  # with figures
MAX_CURVES = 32  # more targets have no metric of their own in the validation
MAX_POINTS = 2000  # of a scatter plot
BINS = 30
BLUE, GREY = "#3b82f6", "#8a7f76"  # as in figures.js


@final
class SquaredError(Objective):
    """Mean squared error of standardised targets; `std` [targets] are their standard deviations in the data."""

    def __init__(self, *, std: Sequence[float] = (), device: device | None = None) -> None:
        import torch

        self._std = torch.tensor(std or 1.0, dtype=torch.float64, device=device)
        self._several = len(std) if 1 < len(std) <= MAX_CURVES else 0
        self.sums = ("loss", "error", "samples", *(f"error {number}" for number in range(self._several)))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from torch.nn import functional

        return functional.mse_loss(outputs, targets.view_as(outputs))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from torch.nn import functional

        return functional.mse_loss(outputs, targets.view_as(outputs), reduction="none").mean(1)

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        import torch

        difference = outputs.double() - targets.view_as(outputs).double()
        errors = difference.abs() * self._std
        found = summed(difference.square().mean(1).sum(), errors.mean(1).sum(), len(targets))
        return torch.cat((found, errors.sum(0))) if self._several else found

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        names = target_curves(self.targets, self._several) if self._several else []
        each = {name: sums[f"error {number}"] / sums["samples"] for number, name in enumerate(names)}
        return {"val_loss": sums["loss"] / sums["samples"], "val_mae": sums["error"] / sums["samples"]} | each


def target_curves(names: Sequence[str], targets: int) -> list[str]:
    """Return the name in the history of the mean absolute error of each of several targets: `val_mae/<name>`.

    Characters that a tracker may reject become `_`. Targets without a name, or of the same name then, are numbered.
    """
    plain = [re.sub(r"\W+", "_", name).strip("_") for name in names] or [""] * targets
    different = [
        name if name and plain.count(name) == 1 else f"{name}_{number}".strip("_") for number, name in enumerate(plain)
    ]
    return [f"val_mae/{name}" for name in different]


def objective(training: Training, where: device, counts: Sequence[int], target_std: Sequence[float]) -> SquaredError:
    """Return the squared error; its validation metric is in the units of the data."""
    return SquaredError(std=target_std, device=where)


def predicted_and_true(
    network: nn.Module, manifest: Manifest, split: AnySplit, settings: Evaluate, where: device
) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions and targets of the split in the units of the data, float64 [n, targets]."""
    import numpy as np

    from workflow_lib.metrics.outputs import predict

    mean, std = np.array(manifest.target_mean), np.array(manifest.target_std)
    predicted = predict(network, split, settings.batch_size, where).astype(np.float64) * std + mean
    targets = split.targets.cpu().numpy().astype(np.float64) * std + mean
    return predicted, targets.astype(np.float32).astype(np.float64)  # no more digits than the shards store


def evaluate(network: nn.Module, manifest: Manifest, split: AnySplit, settings: Evaluate, where: device) -> Measured:
    """Return mean absolute error, root mean squared error and R², and the predictions."""
    from workflow_lib.metrics import numbers
    from workflow_lib.metrics.bootstrap import Resampling

    predicted, targets = predicted_and_true(network, manifest, split, settings, where)
    measured = numbers.measure(predicted, targets, Resampling.of(settings), manifest.outputs)
    return measured, numbers.predictions_csv(predicted, targets, manifest.outputs)


def in_units(network: nn.Module, manifest: Manifest) -> nn.Module:
    """Return the model with its outputs in the units of the data, float64: float32 would round targets far from 0."""
    import torch
    from torch import nn

    class InUnits(nn.Module):
        mean: Tensor
        std: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            for name, values in (("mean", manifest.target_mean), ("std", manifest.target_std)):
                self.register_buffer(name, torch.tensor(values, dtype=torch.float64))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.network(inputs).double() * self.std + self.mean

    return InUnits()


def predicted(outputs: np.ndarray, targets: np.ndarray, manifest: Manifest) -> Columns:
    """Return the predicted numbers, in the units of the data."""
    import numpy as np

    from workflow_lib.metrics.numbers import columns_of

    names = columns_of("predicted", manifest.outputs, outputs.shape[1])
    return dict(zip(names, outputs.astype(np.float64).T, strict=True))


def absolute_error(outputs: np.ndarray, targets: np.ndarray, manifest: Manifest) -> float:
    """Return the sum over samples of the mean absolute error of their targets, in the units of the data."""
    import numpy as np

    true = targets * np.array(manifest.target_std) + np.array(manifest.target_mean)
    return float(np.abs(outputs - true).mean(axis=1).sum())


def chapter_values(evaluation: dict[str, Any], predictions: Path) -> dict[str, Any]:
    """Return two figures a target: predicted against true values, and the distribution of the errors."""
    from workflow_lib.metrics.numbers import name_in

    with predictions.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    # columns: the name of the sample, its number, then the true and the predicted value of each target
    first = header.index("sample") + 1
    targets = (len(header) - first) // 2
    figures = []
    for target in range(min(MAX_TARGETS, targets)):
        true, predicted = ([float(row[first + 2 * target + side]) for row in rows] for side in (0, 1))
        column = header[first + 2 * target]
        name = name_in(column) if column.endswith(")") else f"target {target}"
        suffix = f" of {name}" if targets > 1 else ""
        figures.append(scatter(f"scatter-{target}", f"Predicted against true{suffix}", true, predicted))
        figures.append(histogram(f"errors-{target}", f"Errors{suffix}", true, predicted))
    return {"figures": figures}


def scatter(name: str, label: str, true: Sequence[float], predicted: Sequence[float]) -> dict[str, Any]:
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


def histogram(name: str, label: str, true: Sequence[float], predicted: Sequence[float]) -> dict[str, Any]:
    """Return the figure of the errors, predicted - true."""
    errors = [guess - value for guess, value in zip(predicted, true, strict=True)]
    low, width = min(errors), (max(errors) - min(errors)) / BINS or 1.0  # equal errors need a width, too
    counts = [0] * BINS
    for error in errors:
        counts[min(BINS - 1, int((error - low) / width))] += 1
    bars = {"type": "bar", "x": [low + (place + 0.5) * width for place in range(BINS)], "y": counts, "width": width}
    axes = {"xaxis": {"title": {"text": "predicted - true"}}, "yaxis": {"title": {"text": "test samples"}}}
    return {"name": name, "label": label, "data": [bars], "layout": {**axes, "showlegend": False, "bargap": 0}}


def outcomes(predictions: Path, evaluation: Mapping[str, Any]) -> Outcomes:
    """Return the content of predictions.csv."""
    from workflow_lib.metrics import numbers

    return numbers.outcomes(predictions)


TASK = Task(
    targets="numbers",
    metrics={"mae": "mean absolute error", "rmse": "root mean squared error", "r2": "R²"},
    curve=("mae", "Mean absolute error"),
    ranges={"mae": POSITIVE, "rmse": POSITIVE, "r2": (-math.inf, 1.0), "loss": POSITIVE},
    objective=objective,
    evaluate=evaluate,
    onnx=Onnx(
        output="prediction",
        score=("mae", "Mean absolute error"),
        score_of=absolute_error,
        has_labels=False,
        wrap=in_units,
    ),
    chapter=Chapter("predictions", "Predictions", chapter_values),
    predicted=predicted,
    outcomes=outcomes,
)
