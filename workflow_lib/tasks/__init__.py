"""Everything that depends on the task is in one file, found by its name.

The file has a `TASK`: its facts, which validation reads, and functions for training, evaluation, export and report.
torch and numpy are imported inside these functions, so that facts are known without them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from workflow_lib.errors import ConfigError, UserError
from workflow_lib.tasks.facts import TaskFacts

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, device, nn

    from workflow_lib.config.experiment import Evaluate
    from workflow_lib.config.run import Training
    from workflow_lib.data import Manifest, MappedSplit, ModelSpec, Split
    from workflow_lib.metrics.outcomes import Outcomes

AnySplit: TypeAlias = "Split | MappedSplit"
Pairs: TypeAlias = "tuple[Tensor, Tensor]"  # inputs of the model, and what its outputs are compared with
Measured: TypeAlias = "tuple[dict[str, Any], str]"  # part of evaluation.json with `metrics`, text of predictions.csv
Columns: TypeAlias = "Mapping[str, Sequence[Any] | np.ndarray]"  # by name, one value for each sample


class Objective(ABC):
    """Loss of the training and metrics of the validation.

    A loss is a mean over samples, so that it does not depend on how a batch is divided into micro-batches. Metrics of
    the validation do not depend on settings that change the loss, so that runs can be compared by them.
    """

    sums: tuple[str, ...]  # names of the sums that `measure` returns
    targets: Sequence[str] = ()  # names of several numbers to predict, which the training sets

    def parts(self, inputs: Tensor, targets: Tensor) -> Pairs:
        """Return the model's inputs and what its outputs are compared with, from the batch as it was loaded."""
        return inputs, targets

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample [n], whose mean is `loss`."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of the samples, which training minimises."""

    def mixed_loss(self, outputs: Tensor, targets: Tensor, others: Tensor, weights: Tensor) -> Tensor:
        """Return the mean loss of mixed samples; `weights` [n] are the shares of `targets`, the rest is of `others`."""
        own, other = self.losses(outputs, targets), self.losses(outputs, others)
        return (weights * own + (1 - weights) * other).mean()

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sums over these samples, float64, on the device of the outputs, without synchronising with it."""

    @abstractmethod
    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics of the validation from the sums over the split: those of the facts, and any others."""


def summed(loss: Tensor, other: Tensor, count: int) -> Tensor:
    """Return the sums of an objective as one float64 tensor [3]: loss, another sum, number of samples."""
    import torch

    return torch.stack([loss.double(), other.double(), loss.new_full((), count, dtype=torch.float64)])


@dataclass(frozen=True, kw_only=True)
class Onnx:
    """The exported graph, and its comparison with the trained model.

    output       name of a single output number in the report; the graph's output has this name in the plural
    score        name of the score of both models in export.json, and its label in the report
    score_of     returns the sum of the score over samples, from outputs, targets and the manifest
    has_labels   True if the largest output is a prediction, which both models must agree on
    class_axis   axis of the outputs along which the largest is the prediction
    wrap         returns the network to export; the outputs of the graph are its outputs
    probabilities  returns what the graph gives as `probabilities` beside the outputs, from the outputs; None: nothing
    pairs        returns inputs of the model and targets from a batch
    at_most      returns the largest number of samples to compare, from the model's shapes and export.max_batch; None
                 compares the whole split
    lengths      returns the lengths of shorter sequences to compare
    """

    output: str
    score: tuple[str, str]
    score_of: Callable[[np.ndarray, np.ndarray, Manifest], float]
    has_labels: bool = True
    class_axis: int = -1
    wrap: Callable[[nn.Module, Manifest], nn.Module] = lambda network, manifest: network
    probabilities: Callable[[Tensor], Tensor] | None = None
    pairs: Callable[[Tensor, Tensor], Pairs] = lambda inputs, targets: (inputs, targets)
    at_most: Callable[[ModelSpec, int], int] | None = None
    lengths: Callable[[ModelSpec], Sequence[int]] = lambda spec: ()


@dataclass(frozen=True)
class Chapter:
    """The chapter of a report about the best run.

    name     name of the template, without .html, and of its section
    title    title in the list of chapters
    values   returns the `content` of the template, from evaluation.json and the path of predictions.csv; plotly draws
             its `figures`
    folder   folder of the template; None: report/templates
    """

    name: str
    title: str
    values: Callable[[dict[str, Any], Path], dict[str, Any]] = lambda evaluation, predictions: {}
    folder: Path | None = None


def one_output_a_sample(spec: ModelSpec) -> tuple[Tensor, tuple[int, ...]]:
    """Return two inputs of zeros, and the shape of the model's outputs for them: [2, outputs]."""
    import torch

    return torch.zeros((2, *spec.input_shape)), (2, spec.outputs)


def numbered_outputs(outputs: np.ndarray, targets: np.ndarray, manifest: Manifest) -> Columns:
    """Return a column for each output of a sample, which all have the same number of them: [n, outputs]."""
    if outputs.ndim != 2:
        raise UserError(
            f"the task {manifest.task} cannot predict: its outputs have shape {outputs.shape[1:]} for each sample, and "
            "`predicted` of its TASK does not make columns of them"
        )
    return {f"output_{number}": outputs[:, number] for number in range(outputs.shape[1])}


@dataclass(frozen=True, kw_only=True)
class Task(TaskFacts):
    """The facts of a task, and its code.

    objective   returns the objective of a training, from its settings, its device, the number of training samples of
                each class, and the standard deviation of each target
    evaluate    returns the metrics and the predictions of a model on a split that it was not trained on
    onnx        comparison of the exported model
    chapter     chapter of the report, or None
    probe       returns inputs to check a model with before training, and the shape that its outputs must have
    predicted   returns the columns that `everstep predict` writes for a batch, behind those that name the samples. It
                gets the outputs of `onnx.wrap(network)`, which are also those of the exported graph; the
                targets of `onnx.pairs` (language: the next tokens; other tasks have none when they predict); and the
                manifest, of which an exported graph keeps all but the shards, the splits and the source files. Every
                batch must have the same columns, each with text, whole numbers or float64
    masks       returns the predicted classes of the pixels, uint8 [n, height, width], from these outputs; the command
                `everstep predict` writes them as PNG files. None: there are none
    outcomes    returns the content of predictions.csv, from its path and evaluation.json: the report shows the errors,
                and `everstep compare` resamples the predictions of two runs together; None: neither is possible
    """

    objective: Callable[[Training, device, Sequence[int], Sequence[float]], Objective]
    evaluate: Callable[[nn.Module, Manifest, AnySplit, Evaluate, device], Measured]
    onnx: Onnx
    chapter: Chapter | None = None
    probe: Callable[[ModelSpec], tuple[Tensor, tuple[int, ...]]] = one_output_a_sample
    predicted: Callable[[np.ndarray, np.ndarray, Manifest], Columns] = numbered_outputs
    masks: Callable[[np.ndarray], np.ndarray] | None = None
    outcomes: Callable[[Path, Mapping[str, Any]], Outcomes] | None = None


def load(name: str) -> Task:
    """Return a task by its name or import path. Raises ConfigError if there is none."""
    from workflow_lib.plugins import task_facts

    found = task_facts(name)
    if not isinstance(found, Task):
        raise ConfigError(f"task `{name}` is a {type(found).__name__}; allowed: a Task of workflow_lib.tasks")
    return found
