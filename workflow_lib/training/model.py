"""The model of a run, built and asked whether it can be trained; and what torch refuses, in the words of a setting."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workflow_lib import plugins, tasks
from workflow_lib.errors import ConfigError
from workflow_lib.runtime.torch_internals import configure_compiler, is_compiler_error

if TYPE_CHECKING:
    from workflow_lib.config.run import Model, Training
    from workflow_lib.data import ModelSpec


def build_model(section: Model, spec: ModelSpec) -> nn.Module:
    """The model of these settings, which fits the data; its weights are drawn from torch's global generator."""
    plugin = plugins.load("models", section.name)
    model: nn.Module = plugin.build(plugin.Params.model_validate(section.params), spec)
    _refuse_unfit(section.name, model, spec)
    return model


def _refuse_unfit(name: str, model: Any, spec: ModelSpec) -> None:
    """The model is one that can be trained, and gives what the data is compared with; asked with two small inputs."""
    if not isinstance(model, nn.Module) or not any(one.requires_grad for one in model.parameters()):
        what = "has no weights to train" if isinstance(model, nn.Module) else "is no torch.nn.Module"
        raise ConfigError(f"model.name: what build() of {name} returned {what}")
    inputs, expected = tasks.load(spec.task).probe(spec)
    try:
        with torch.no_grad():
            given = model.eval()(inputs)
    except RuntimeError as error:
        explain(error)
        raise
    model.train()
    if not isinstance(given, torch.Tensor) or tuple(given.shape) != expected or not given.is_floating_point():
        shown = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, torch.Tensor) else type(given).__name__
        asked = f"for inputs {tuple(inputs.shape)}; the data needs floats {expected}"
        raise ConfigError(f"model.name: {name} gives {shown} {asked}")


def compiled(model: nn.Module, *, is_strict: bool) -> nn.Module:
    """The model for the training steps; the first call with a shape compiles, always to the same code."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"training.compile: needs a C++ compiler, and there is no `{compiler}` here; install g++, or let CXX "
            f"name one, or leave training.compile false"
        )
    configure_compiler(is_strict=is_strict)
    # a graph for each shape: one for all would be used or not by what came before, which a resume has not seen
    compiled: Any = torch.compile(model, dynamic=False)
    wrapped: nn.Module = compiled
    return wrapped


def explain_single_value(error: Exception, training: Training, processes: int) -> None:
    """Raises ConfigError where a normalisation was given one value, which has no deviation."""
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
    """Raises ConfigError where it was the strict determinism that refused a kernel."""
    if found := re.match(r"(\S+) does not have a deterministic implementation", str(error)):
        raise ConfigError(
            f"training.determinism: strict refuses `{found[1]}`, which has no deterministic implementation here. Take "
            f"standard, with which runs are alike only up to rounding, or a model without it"
        ) from error


def explain_compiler(error: RuntimeError) -> None:
    """Raises ConfigError where it was torch's compiler that failed."""
    if is_compiler_error(error):
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"training.compile: this model cannot be compiled here: {reason}") from error
