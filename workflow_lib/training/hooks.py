"""A person's own functions, called between the steps of a training: a module, named by `training.hooks`.

    def on_epoch_end(state):
        print(state.epoch, state.row["val_loss"])

    on_train_start   the state is that of the start or of the checkpoint; in every attempt
    on_step_end      an optimizer step is done
    on_epoch_end     an epoch is validated and its row is in the history
    on_train_end     the last epoch is done

They run on rank 0, between steps, so that what they keep is part of the commit: a module that has `state_dict()` and
`load_state_dict(state)`, of JSON values, goes on from where it was. A step that a kill makes the run repeat calls them
again: what they write outside of their state may be written twice, and is best named by the step.
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
        history: the metrics of each epoch
        model: the module that is trained
    """

    step: int
    epoch: int
    learning_rate: float
    loss: torch.Tensor | None
    history: tuple[Mapping[str, float], ...]
    model: nn.Module

    @property
    def row(self) -> Mapping[str, float]:
        """Metrics of the last epoch; empty before the first."""
        return self.history[-1] if self.history else {}


class Hooks:
    """The functions of a module, and what they keep."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def has(self, name: str) -> bool:
        """Whether the module has a function of that name."""
        return hasattr(self._module, name)

    def call(self, name: str, view: View) -> None:
        """The function is called, if the module has it."""
        function = getattr(self._module, name, None)
        if function is not None:
            function(view)

    def state(self) -> Any:
        """What the module keeps, as JSON values that nobody changes any more; None where it keeps nothing."""
        give = getattr(self._module, "state_dict", None)
        if give is None:
            return None
        kept = give()
        try:
            state = json.loads(json.dumps(kept, allow_nan=False))
            if state != kept:
                raise ValueError("a resume would get it back as other values (tuples, keys that are no text)")
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"training.hooks: {self._module.__name__}.state_dict() gave what JSON cannot hold: {error}; allowed: "
                f"finite numbers, texts, true, false, null, lists, and mappings of them by text"
            ) from error
        return state

    def restore(self, state: Any) -> None:
        """The module goes on from what it kept."""
        if state is not None:
            self._module.load_state_dict(state)
