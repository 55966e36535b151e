"""The user's own functions, called between the steps of a training: a module, named by `training.hooks`.

    def on_epoch_end(state):
        print(state.epoch, state.row["val_loss"])

    on_train_start      in every attempt, after the state is restored
    on_step_end         after each optimizer step
    on_validation_end   after each validation; its metrics are in the history
    on_epoch_end        after each epoch that is trained to its end, and after the validation there
    on_train_end        after the last validation

They run on rank 0, between steps, so their state is part of the commit: a checkpoint holds what `state_dict()` of the
module returns, as JSON values, and a resume passes it to `load_state_dict(state)`. A step that is repeated after a kill
calls them again. Effects outside that state, such as a line in a file, then happen twice: record the step with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from workflow_lib.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class View:
    """The state that a hook may read. A hook must not change the model's weights.

    Attributes:
        step: finished optimizer steps
        epoch: finished epochs
        learning_rate: of the next step
        loss: of the last step, on the samples of rank 0; None except in on_step_end
        history: the metrics of each validation
        model: the module that is trained
    """

    step: int
    epoch: int
    learning_rate: float
    loss: torch.Tensor | None
    history: tuple[Mapping[str, float | None], ...]
    model: nn.Module

    @property
    def row(self) -> Mapping[str, float | None]:
        """Metrics of the last validation; empty before the first."""
        return self.history[-1] if self.history else {}


class Hooks:
    """The functions of a module, and their state."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def has(self, name: str) -> bool:
        """Return True if the module has a function of that name."""
        return hasattr(self._module, name)

    def call(self, name: str, view: View) -> None:
        """Call the function if the module has it."""
        function = getattr(self._module, name, None)
        if function is not None:
            function(view)

    def state(self) -> Any:
        """Return a copy of the module's state in JSON values, or None if it has no `state_dict`. Raises ConfigError."""
        state_dict = getattr(self._module, "state_dict", None)
        if state_dict is None:
            return None
        return json_state(state_dict(), f"training.hooks: {self._module.__name__}.state_dict() returned")

    def restore(self, state: Any) -> None:
        """Pass the saved state to the module."""
        if state is not None:
            self._module.load_state_dict(state)


def json_state(given: Any, whose: str) -> Any:
    """Return a copy of a state in JSON values. Raises ConfigError if JSON cannot hold it."""
    try:
        state = json.loads(json.dumps(given, allow_nan=False))
        if state != given:
            raise ValueError("a resume would restore other values (for tuples, or for keys that are not strings)")
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{whose} what JSON cannot hold: {error}; allowed: finite numbers, strings, True, False, None, and lists "
            f"and dicts of these with string keys"
        ) from error
    return state
