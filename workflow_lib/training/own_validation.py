"""The validation of a training step that defines `validate`: its metrics are means over samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from workflow_lib import plugins
from workflow_lib.errors import ConfigError
from workflow_lib.training.state import State
from workflow_lib.training.step import Batch, TrainingStep
from workflow_lib.training.step_context import Context


class OwnValidation:
    """The sums and the metrics of a step's `validate`, with the averaged weights of the model if there are any."""

    def __init__(self, state: State) -> None:
        if state.step is None:
            raise TypeError("the run has no training step of its own")
        self._state, self._step, self._context = state, state.step, Context(state)
        self._validating = _Validating(state.step)
        self.sums = (*state.step.metrics, "samples")

    def measure(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the sums over these samples, float64, on the device."""
        averages = {f"step.{name}": average for name, average in (self._state.ema or {}).items()}
        given = ((inputs, targets), self._context)
        with plugins.user_code_errors(f"training.step: {type(self._step).__name__}.validate()"):
            found: Any = torch.func.functional_call(self._validating, averages, given)
        if not isinstance(found, Mapping) or set(found) != set(self._step.metrics):
            shown = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
            raise ConfigError(
                f"training.step: {type(self._step).__name__}.validate() returns {shown}; it must return a number for "
                f"each of its metrics: {', '.join(self._step.metrics)}"
            )
        values = [*(found[name] for name in self._step.metrics), 1.0]
        means = [torch.as_tensor(value, dtype=torch.float64, device=self._state.device) for value in values]
        return torch.stack([mean.reshape(()) * len(inputs) for mean in means])

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics by column."""
        return {f"val_{name}": sums[name] / sums["samples"] for name in self._step.metrics}


class _Validating(nn.Module):
    """Calls `validate` of the step, as a module in which weights can be replaced for a call."""

    def __init__(self, step: TrainingStep) -> None:
        super().__init__()
        self.step = step

    def forward(self, batch: Batch, context: Context) -> Any:
        return self.step.validate(batch, context)
