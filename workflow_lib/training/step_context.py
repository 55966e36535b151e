"""The context that the user's training step computes in: its optimizers, its place in the run, and a log of values."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from workflow_lib.errors import ConfigError
from workflow_lib.training.step import TrainingStep
from workflow_lib.training.step_building import Joined

if TYPE_CHECKING:
    from workflow_lib.training.state import State


class Context:
    """The context of `step` and `validate` of a training step.

    Attributes:
        optimizers: by name, as `optimizers` of the step returned them
        step: finished optimizer steps of the run; one call of `step` counts as one
        epoch: finished epochs
        learning_rate: `optimizer.lr` times the factor of the schedule, which multiplies the rates of all optimizers
        samples: size of this rank's batch in a call of `step`
        device: of the batch
        rank: number of this process among ``world_size``
        world_size: number of processes, each of which has its part of the batch
    """

    def __init__(self, state: State) -> None:
        self._state, self.samples, self.learning_rate = state, 0, 1.0
        self.optimizers = state.optimizer.parts if isinstance(state.optimizer, Joined) else {}
        self.device, self.rank, self.world_size = state.device, state.ranks.rank, state.ranks.world_size

    @property
    def step(self) -> int:
        """Finished optimizer steps of the run."""
        return self._state.progress.cursor.step

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self._state.progress.cursor.epoch

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which models compute: in `training.precision`."""
        return self._state.autocast()

    def log(self, name: str, value: torch.Tensor | float) -> None:
        """Add a value, a mean over the samples of the batch, to the column `train_<name>`; `logs` has the name."""
        step = self._own()
        if name not in step.logs:
            raise ConfigError(
                f"training.step: context.log(`{name}`, ...): {type(step).__name__}.logs names what is logged: "
                f"{', '.join(step.logs) or 'nothing'}"
            )
        self._needs_training("context.log")
        given = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value, device=self.device)
        row = self._state.logged[step.logs.index(name)]
        row[0].add_(given.reshape(()), alpha=self.samples)
        row[1].add_(self.samples)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of the values of all ranks, weighted by their samples, detached. All ranks must call it."""
        self._needs_training("context.mean")
        if self.world_size == 1:
            return value.detach()
        total = torch.cat([value.detach().flatten() * self.samples, value.new_tensor([self.samples])])
        dist.all_reduce(total)
        return (total[:-1] / total[-1]).view_as(value)

    def _own(self) -> TrainingStep:
        if self._state.step is None:
            raise RuntimeError("there is no step of the user")
        return self._state.step

    def _needs_training(self, name: str) -> None:
        if not self.samples:
            raise ConfigError(f"training.step: {name} is for `step`; `validate` returns the values of its metrics")
