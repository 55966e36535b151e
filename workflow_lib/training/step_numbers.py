"""The numbers that differ from step to step: learning rates, the weight of the averages, the key of the augmentation.

A graph repeats the kernels of a step with the numbers that they were captured with. So a captured step reads these
numbers from tensors, which are filled before each step. Fused optimizers on a GPU compute with a learning rate in
float32 if it is a tensor, and in float64 otherwise: there it is always a tensor, so that a graph gives the bits of the
step that it replaces.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from workflow_lib.config.run_checks import GRAPH_OPTIMIZERS
from workflow_lib.training import parameter_groups
from workflow_lib.training.augment import Key

if TYPE_CHECKING:
    from workflow_lib.training.state import State


class StepNumbers:
    """The numbers of the next step.

    key              key of the epoch's random numbers of augmentation
    average_weight   weight of the new weights in the averages
    """

    def __init__(self, state: State, *, is_captured: bool) -> None:
        self.key: Key = 0
        self.average_weight: float | torch.Tensor = 0.0
        self._optimizer, device, self._is_cuda = state.optimizer, state.device, state.device.type == "cuda"
        self._rates: list[tuple[float, torch.Tensor]] = []  # of each group: the number, and the tensor that has it
        if is_captured:
            self.key = torch.zeros((), dtype=torch.int64, device=device)
            self.average_weight = torch.zeros((), device=device)
        has_fused = state.step is None and state.run.optimizer.name in GRAPH_OPTIMIZERS
        if has_fused and (is_captured or self._is_cuda):
            kind = torch.float32 if self._is_cuda else torch.float64
            self._rates = [(0.0, torch.zeros((), dtype=kind, device=device)) for _ in self._optimizer.param_groups]

    def set_key(self, key: int) -> None:
        """Set the key of an epoch."""
        self.key = self.key.fill_(key) if isinstance(self.key, torch.Tensor) else key

    def set_average_weight(self, weight: float) -> None:
        """Set the weight of the new weights in the averages."""
        held = self.average_weight
        self.average_weight = held.fill_(weight) if isinstance(held, torch.Tensor) else weight

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of each group: in its settings, and in its tensor."""
        parameter_groups.set_learning_rate(self._optimizer, learning_rate)
        for number, (before, tensor) in enumerate(self._rates):
            rate = self._optimizer.param_groups[number]["lr"]
            if rate != before:
                self._rates[number] = rate, tensor.fill_(rate)

    def rates_in_memory(self) -> contextlib.AbstractContextManager[None]:
        """In this context the optimizer reads its learning rates from the tensors, if there are any."""
        return self._with_tensors() if self._rates else contextlib.nullcontext()

    @contextlib.contextmanager
    def _with_tensors(self) -> Iterator[None]:
        groups = self._optimizer.param_groups
        settings = [dict(group) for group in groups]
        # torch asks for this setting in a capture, and warns of it anywhere else; fused kernels do not depend on it
        is_capturing = self._is_cuda and torch.cuda.is_current_stream_capturing()
        for group, (_, tensor) in zip(groups, self._rates, strict=True):
            group["lr"] = tensor
            if is_capturing and "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, before in zip(groups, settings, strict=True):
                group.update(before)
