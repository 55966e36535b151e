"""The result of a run whose model takes other inputs than the data's, such as noise, in a training step of one's own.

It cannot be evaluated as a model of the data's task: its metrics are those of the step's `validate` at the best
validation, and its export is compared on example inputs of the step.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from workflow_lib.errors import UserError
from workflow_lib.results import layout as results_layout
from workflow_lib.results.statements import Training
from workflow_lib.runtime.seed import derive, seed_everything
from workflow_lib.tasks import Onnx, Task, regression

if TYPE_CHECKING:
    import numpy as np
    import torch

    from workflow_lib.data import Manifest, ModelSpec
    from workflow_lib.plan import RunConfig
    from workflow_lib.training.step import TrainingStep

NAME = "workflow_lib.evaluation.generated:TASK"
SAMPLES = 256


class Examples:
    """Inputs of the model for `SAMPLES` samples, in place of a split of the data."""

    def __init__(self, inputs: torch.Tensor) -> None:
        self._inputs = inputs

    def __len__(self) -> int:
        return len(self._inputs)

    def batch(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs, and nothing to compare the outputs with."""
        return self._inputs[rows], self._inputs[rows].new_zeros(len(self._inputs[rows]))

    def stored(self, rows: slice) -> np.ndarray:
        """Return the same inputs."""
        return self._inputs[rows].numpy()

    def described(self, manifest: Manifest) -> Manifest:
        """Return the manifest of the run's data with the inputs that the model takes, which are not preprocessed."""
        inputs = {"input_shape": tuple(self._inputs.shape[1:]), "dtype": "float32", "features": (), "vocabulary": ()}
        values = {"scale": 1.0, "mean": (0.0,), "std": (1.0,), "target_mean": (), "target_std": ()}
        return manifest.model_copy(update={"task": NAME, **inputs, **values})


def examples(run: RunConfig, spec: ModelSpec, weights: Mapping[str, Path]) -> Examples | None:
    """Return the example inputs of the run's training step, or None if its model takes those of the data."""
    from workflow_lib.training.step_building import new_step

    step: TrainingStep | None = new_step(run.training, weights)
    seed_everything(derive(run.seed, "examples"))
    inputs = step.example_inputs(spec, SAMPLES) if step is not None else None
    return None if inputs is None else Examples(inputs)


def best_metrics(training: Training, model: Path) -> dict[str, Any]:
    """Return the part of evaluation.json with the metrics of the best validation."""
    with model.with_name(results_layout.HISTORY).open(encoding="utf-8", newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    best = rows[training["best"]["step"]]
    metrics = {name: _point(float(value)) for name, value in best.items() if name.startswith("val_")}
    return {"metrics": metrics, "bootstrap": {"resamples": 0}}


def _point(value: float) -> dict[str, Any]:
    return {"value": value, "low": None, "high": None}


def _nothing(*given: Any) -> NoReturn:
    raise UserError("the model of this run takes inputs of its own training step, and predicts nothing from data")


def _sum(outputs: np.ndarray, targets: np.ndarray, manifest: Manifest) -> float:
    return float(outputs.reshape(len(outputs), -1).mean(axis=1).sum())


TASK = Task(
    targets="numbers",
    metrics={"val_loss": "loss"},
    curve=("loss", "Loss"),
    objective=regression.objective,
    evaluate=_nothing,
    predicted=_nothing,
    onnx=Onnx(output="value", score=("mean", "Mean of the outputs"), score_of=_sum, has_labels=False),
)
