"""Models built without memory, on torch's meta device: whether they fit the data, and how much memory they will need.

Only shapes are computed, so a model of any size is checked in seconds. This module imports torch inside its functions.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import models, plugins, tasks
from workflow_lib.errors import ConfigError, DataError
from workflow_lib.text import byte_size, count

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workflow_lib.config.optimization import Optimizer
    from workflow_lib.data import ModelSpec
    from workflow_lib.plan import RunConfig

LARGEST = 4 * 10**12  # bytes: no device has as much memory
ANY_FEATURES = 8  # width of a table that is not read; batch norm needs two rows of any width
ANY_SIZE = 64  # height and width of images that are not read
ANY_OUTPUTS = 2
ONLY_THE_TRAINING = (
    "each process computes one sample at a time (training.batch_size, training.accumulation_steps, runtime.nproc): "
    "only the training can tell whether the model's batch norm gets more than one value of each channel"
)


@dataclass(frozen=True)
class Shapes:
    """The shapes that a model is checked with; `inputs` and `outputs` say whether those of the data are known."""

    spec: ModelSpec
    inputs: bool
    outputs: bool


@dataclass(frozen=True)
class Sizes:
    """Parameters of a model, and bytes on each device of its training.

    optimizer    None if the optimizer is the user's, whose state is not known
    activations  None if the forward pass cannot be computed without memory; of one micro-batch in fp32
    lacking      training step whose other models are not included, or None
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int | None
    averages: int
    activations: int | None
    samples: int
    lacking: str | None = None

    @property
    def state(self) -> int:
        """Bytes without the activations."""
        return self.weights + self.gradients + (self.optimizer or 0) + self.averages

    def __str__(self) -> str:
        parts = [f"weights {byte_size(self.weights)}", f"gradients {byte_size(self.gradients)}"]
        optimizer = "not included" if self.optimizer is None else byte_size(self.optimizer)
        parts.append(f"state of the optimizer {optimizer}")
        if self.averages:
            parts.append(f"averages {byte_size(self.averages)}")
        measured = "not included" if self.activations is None else f"{byte_size(self.activations)} in fp32"
        parts.append(f"activations of {count(self.samples, 'sample')} {measured}")
        trained = "" if self.trained == self.parameters else f" ({self.trained:,} of them trained)"
        total = byte_size(self.state + (self.activations or 0))
        lacking = "" if self.lacking is None else f"; what {self.lacking} builds besides it is not included"
        return (
            f"{count(self.parameters, 'parameter')}{trained}; memory on each device about {total}: {', '.join(parts)}"
            f"{lacking}"
        )


def shapes_of(run: RunConfig, known: plugins.DatasetFacts, manifest: Path | None) -> Shapes | None:
    """Return the shapes that a model of this run must accept and return; None if even their number is not known.

    All are known from the manifest of prepared data.
    """
    from workflow_lib.data import Manifest, ModelSpec

    if manifest is not None:
        with contextlib.suppress(DataError):  # damaged: the data is prepared again
            return Shapes(Manifest.load(manifest).spec, inputs=True, outputs=True)
    task = plugins.task(run.data.name, run.data.params)
    targets = plugins.task_facts(task).targets
    outputs = known.outputs or 1 if targets == "numbers" else known.classes or ANY_OUTPUTS
    has_outputs = targets == "numbers" or known.classes is not None
    if known.inputs == "images":
        height, width = known.size or (ANY_SIZE, ANY_SIZE)
        spec = ModelSpec((known.channels or 3, height, width), outputs, task)
        return Shapes(spec, known.size is not None and known.channels is not None, has_outputs)
    if known.inputs == "tables":
        return Shapes(ModelSpec((ANY_FEATURES,), outputs, task), inputs=False, outputs=has_outputs)
    return None


def check(run: RunConfig, shapes: Shapes, processes: int) -> Sizes | None:
    """Return the sizes of the model; None if it cannot be built without memory.

    Raises ConfigError if it cannot be built, does not fit the data, or is too large for any device.
    """
    import torch

    from workflow_lib.runtime.torch_internals import needs_numbers
    from workflow_lib.training import parameter_groups
    from workflow_lib.training.model import check_fits, check_memory_format
    from workflow_lib.training.step_building import new_step

    try:
        with torch.device("meta"):
            model = models.build(run.model, shapes.spec)
            step = new_step(run.training, {})
            example = step.example_inputs(shapes.spec, 2) if step is not None else None
            check_fits(run.model.name, model, shapes.spec, outputs_are_known=shapes.outputs, example=example)
            if step is None:
                check_memory_format(run.training.memory_format, model)
            parameter_groups.freeze(model, run.model.init.freeze)
            sizes = _sizes(run, model, shapes.spec, processes)
    except Exception as error:
        if needs_numbers(error):
            return None
        raise
    _check_largest(sizes)
    return sizes


def check_size(run: RunConfig, shapes: Shapes | None, processes: int) -> None:
    """Raise ConfigError if a model of this package is too large for any device, with whatever inputs."""
    import torch

    from workflow_lib.data import ModelSpec

    task = plugins.task(run.data.name, run.data.params)
    smallest = ModelSpec((ANY_FEATURES,), ANY_OUTPUTS, task, vocabulary=ANY_OUTPUTS)
    spec = smallest if shapes is None else shapes.spec
    try:
        with torch.device("meta"):
            sizes = _sizes(run, models.build(run.model, spec), None, processes)
    except Exception:  # made-up inputs do not fit every model
        return
    _check_largest(sizes)


def _check_largest(sizes: Sizes) -> None:
    if sizes.state > LARGEST:
        raise ConfigError(
            f"model.params: the model has {count(sizes.parameters, 'parameter')}; a training of it needs "
            f"{byte_size(sizes.state)} on each device, more than any has; choose a smaller one"
        )


def single_value_note(run: RunConfig, shapes: Shapes | None, inputs: str | None, processes: int) -> str | None:
    """Raise ConfigError if the model cannot be trained on one sample at a time; return a note if that is unknown."""
    if shapes is None:
        return None if inputs else ONLY_THE_TRAINING
    import torch

    from workflow_lib.runtime.torch_internals import is_batch_norm
    from workflow_lib.training.model import explain_single_value

    try:
        with torch.device("meta"):
            model = models.build(run.model, shapes.spec).train()
            if not (shapes.inputs or len(shapes.spec.input_shape) == 1):
                return ONLY_THE_TRAINING if any(map(is_batch_norm, model.modules())) else None
            model(tasks.load(shapes.spec.task).probe(shapes.spec)[0][:1])
    except ValueError as error:
        explain_single_value(error, run.training, processes)
    except Exception:  # a model that needs real numbers fails on the meta device
        return ONLY_THE_TRAINING
    return None


def _sizes(run: RunConfig, model: nn.Module, spec: ModelSpec | None, processes: int) -> Sizes:
    """Return the sizes of a model on the meta device, without activations if there is no spec of its inputs."""
    training = run.training
    shared_by = processes if training.parallel == "fsdp" else 1
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    everything = [*model.parameters(), *model.buffers()]
    weights, gradients = (sum(tensor.nbytes for tensor in tensors) // shared_by for tensors in (everything, trained))
    moments = _moments(run.optimizer, model)
    samples = max(1, training.batch_size // (processes * training.accumulation_steps))
    return Sizes(
        parameters=sum(weight.numel() for weight in model.parameters()),
        trained=sum(weight.numel() for weight in trained),
        weights=weights,
        gradients=gradients,
        optimizer=None if moments is None else moments // shared_by,
        averages=gradients if training.ema_decay is not None else 0,
        activations=None if spec is None else _activations(model, spec, samples),
        samples=samples,
    )


def _moments(section: Optimizer, model: nn.Module) -> int | None:
    """Return the bytes that the optimizer keeps for a model; None if it is not one of the package."""
    from workflow_lib.config.optimization import SGD

    trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    if section.name == "muon":
        from workflow_lib.training.optimizers import hidden_matrices

        return 2 * trained - sum(weight.nbytes for weight in hidden_matrices(model))
    if isinstance(section, SGD):
        return trained if section.momentum else 0
    of_each: dict[str, int] = {"adamw": 2, "lion": 1}
    return of_each[section.name] * trained if section.name in of_each else None


def _activations(model: nn.Module, spec: ModelSpec, samples: int) -> int | None:
    """Return the bytes that a forward pass keeps for the backward pass, and its outputs; None if it fails."""
    import torch

    from workflow_lib.runtime.torch_internals import storage_address

    probe, _ = tasks.load(spec.task).probe(spec)
    inputs = torch.zeros((samples, *spec.input_shape), dtype=probe.dtype)
    kept: dict[int, int] = {}
    not_counted = {storage_address(weight) for weight in (*model.parameters(), *model.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        kept[storage_address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    def use(tensor: Any) -> Any:
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, use):
            outputs = model.train()(inputs)
        keep(outputs)
    except Exception:  # dropout and batch norm, say, may need what the meta device does not have
        return None
    return sum(size for address, size in kept.items() if address not in not_counted)
