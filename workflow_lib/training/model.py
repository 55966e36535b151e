"""The model of a run: built, checked against the data, and compiled; errors of torch become errors of a setting."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workflow_lib import models, plugins, tasks
from workflow_lib.errors import ConfigError
from workflow_lib.runtime.determinism import NO_KERNEL
from workflow_lib.runtime.torch_internals import configure_compiler, is_compiler_error

if TYPE_CHECKING:
    from workflow_lib.config.run import Model, Training
    from workflow_lib.data import ModelSpec


def build_model(section: Model, spec: ModelSpec, example: torch.Tensor | None = None) -> nn.Module:
    """Return the model of these settings. Its weights are drawn from torch's global generator.

    ``example`` are inputs of a model that is not one of the task; its outputs may be any.

    Raises ConfigError if it does not fit the data.
    """
    model = models.build(section, spec)
    check_fits(section.name, model, spec, example=example)
    return model


def check_fits(
    name: str,
    model: Any,
    spec: ModelSpec,
    *,
    outputs_are_known: bool = True,
    example: torch.Tensor | None = None,
) -> None:
    """Raise ConfigError unless the model has weights to train and gives outputs of the shape that the data needs.

    If the number of outputs is not known yet, only the number of dimensions is compared. With example inputs, any
    floats for each sample are right.
    """
    if not isinstance(model, nn.Module) or not any(weight.requires_grad for weight in model.parameters()):
        what = "has no weights to train" if isinstance(model, nn.Module) else "is not a torch.nn.Module"
        raise ConfigError(f"model.name: the result of build() of {name} {what}")
    inputs, expected = tasks.load(spec.task).probe(spec) if example is None else (example, None)
    with plugins.user_code_errors(f"model.name: {name} with inputs {tuple(inputs.shape)}"):
        try:
            with torch.no_grad():
                given = model.eval()(inputs)
        except RuntimeError as error:
            explain(error)
            raise
    model.train()
    is_tensor = isinstance(given, torch.Tensor)
    if expected is None:
        expected = (len(inputs), *(given.shape[1:] if is_tensor else ()))
    fits = is_tensor and (given.shape == expected if outputs_are_known else given.dim() == len(expected))
    if not fits or not given.is_floating_point():
        shown = f"{given.dtype} {tuple(given.shape)}" if is_tensor else _described(given)
        asked = f"for inputs {tuple(inputs.shape)}; the data needs floats {expected}"
        raise ConfigError(f"model.name: {name} gives {shown} {asked}")


def _described(given: Any) -> str:
    """Return the type of an output that is no tensor, with the keys of a mapping."""
    keys = f" of {', '.join(map(str, given))} (not of `logits`)" if isinstance(given, Mapping) else ""
    return f"a {type(given).__name__}{keys}"


def check_memory_format(setting: str, module: nn.Module) -> None:
    """Raise ConfigError if `training.memory_format` would change no weight of the module."""
    if setting != "contiguous" and not _convolutions(module):
        raise ConfigError(
            f"training.memory_format: {setting} is the order of the weights of 2D convolutions, and this model has "
            "none; allowed: contiguous"
        )


def set_memory_format(setting: str, module: nn.Module) -> None:
    """Lay out the weights of 2D convolutions as `training.memory_format` says. Raises ConfigError if there are none.

    Inputs need no layout: a convolution passes on that of its weight.
    """
    check_memory_format(setting, module)
    if setting == "channels_last":
        for weight in _convolutions(module):
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def _convolutions(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights of 2D convolutions, without those that are computed from other weights."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    weights = [part.weight for part in module.modules() if isinstance(part, kinds)]
    return [weight for weight in weights if isinstance(weight, nn.Parameter)]


def compiled(model: nn.Module, *, is_strict: bool) -> nn.Module:
    """Return the compiled model. Its first call with each shape compiles, always to the same code."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"training.compile: needs a C++ compiler, and there is no `{compiler}` here; install g++, set CXX to the "
            f"name of a compiler, or leave training.compile false"
        )
    configure_compiler(is_strict=is_strict)
    # One graph for each shape: whether a graph for all shapes is used depends on the shapes seen before, and a resume
    # has not seen the same ones.
    compiled: Any = torch.compile(model, dynamic=False)
    wrapped: nn.Module = compiled
    return wrapped


def explain_single_value(error: Exception, training: Training, processes: int) -> None:
    """Raise ConfigError if the error says that a normalisation got a single value, which has no deviation."""
    if str(error).startswith(("Expected more than 1 value per channel", "Expected more than 1 spatial element")):
        samples = training.batch_size // (training.accumulation_steps * processes)
        raise ConfigError(
            f"training.batch_size: a batch of {training.batch_size} in {training.accumulation_steps} micro-batches "
            f"(training.accumulation_steps) on {processes} processes (runtime.nproc) leaves {samples} sample a process,"
            f" and a normalisation of the model gets a single value of it, which has no deviation ({error}); take "
            "larger batches, fewer micro-batches or processes, or a model without batch norm (where the model has it: "
            "model.params.norm: group)"
        ) from error


def explain(error: Exception) -> None:
    """Raise ConfigError if strict determinism rejected a kernel."""
    if found := NO_KERNEL.match(str(error)):
        raise ConfigError(
            f"training.determinism: strict does not allow `{found[1] or 'cuBLAS'}`: it has no deterministic "
            "implementation here; use warn or standard, with which runs are equal only up to rounding, or a model "
            "without it"
        ) from error


def explain_compiler(error: RuntimeError) -> None:
    """Raise ConfigError if torch's compiler failed."""
    if is_compiler_error(error):
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"training.compile: this model cannot be compiled here: {reason}") from error
