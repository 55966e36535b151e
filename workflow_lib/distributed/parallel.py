"""How ranks train one model: each holds all of it (``ddp``), or a part of each of its tensors (``fsdp``).

Optimizer, averages and checkpoints know plain tensors only. Under fsdp these are this rank's parts, in the memory that
the model itself uses: a step of an optimizer that works element by element is a step of the whole model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from workflow_lib.distributed.ranks import Ranks

Named = Mapping[str, torch.Tensor]
Groups = Mapping[str, Named]
Offsets = dict[str, dict[str, list[int]]]


class Parallel(Protocol):
    """The model of one rank, and how it is shared."""

    model: nn.Module
    """As it was built: for modes and buffers."""
    parameters: list[nn.Parameter]
    """What the optimizer changes."""
    is_shared: bool
    """Whether each rank has tensors of its own, which it saves itself."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The outputs in training; gradients are averaged over the ranks in the backward pass."""

    def serve(self, inputs: torch.Tensor, averages: Named | None) -> torch.Tensor:
        """The outputs of the averages, or else of the weights. All shared models have to be asked alike."""

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Gradients may stay where they are in this backward pass, since another follows."""

    def zero_grad(self) -> None:
        """No parameter has a gradient."""

    def take_gradients(self) -> None:
        """The parameters have the gradients of the backward pass."""

    def clip(self, norm: float) -> torch.Tensor:
        """The gradient of the whole model is no longer than that; how long it was."""

    def scaler(self, *, enabled: bool) -> torch.amp.GradScaler:
        """The scaler of fp16, which skips a step on all ranks or on none."""

    def names(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Each parameter under each of its names; a tied one has several."""

    def state(self) -> dict[str, torch.Tensor]:
        """Weights and buffers, in the model's own memory."""

    def load(self, state: Named) -> None:
        """The model has this state."""

    def files(self, label: str, groups: Groups) -> tuple[dict[str, Named], Offsets]:
        """The groups as this rank saves them, one file each, and where the parts begin."""

    def read(self, path: Path) -> dict[str, dict[str, torch.Tensor]]:
        """The groups that are shared, as this rank needs them, on the CPU, of a verified checkpoint."""


class Replicated:
    """Every rank has the whole model, and DistributedDataParallel averages their gradients."""

    is_shared = False

    def __init__(
        self, model: nn.Module, device: torch.device, world_size: int, compiled: Callable[[nn.Module], nn.Module] | None
    ) -> None:
        self.model = model.to(device)
        trained = compiled(model) if compiled is not None else model
        self.parameters = [one for one in model.parameters() if one.requires_grad]
        self._device = device
        self._ddp: nn.parallel.DistributedDataParallel | None = None
        if world_size > 1:
            ids = [device] if device.type == "cuda" else None
            self._ddp = nn.parallel.DistributedDataParallel(trained, device_ids=ids, gradient_as_bucket_view=True)
        self.forward: nn.Module = self._ddp or trained

    def serve(self, inputs: torch.Tensor, averages: Named | None) -> torch.Tensor:
        """See Parallel."""
        outputs: torch.Tensor = torch.func.functional_call(self.model, dict(averages or {}), (inputs,))
        return outputs

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """See Parallel."""
        return self._ddp.no_sync() if self._ddp is not None else contextlib.nullcontext()

    def zero_grad(self) -> None:
        """See Parallel."""
        for one in self.parameters:
            one.grad = None

    def take_gradients(self) -> None:
        """See Parallel; they are there already."""

    def clip(self, norm: float) -> torch.Tensor:
        """See Parallel."""
        return nn.utils.clip_grad_norm_(self.parameters, norm)

    def scaler(self, *, enabled: bool) -> torch.amp.GradScaler:
        """See Parallel."""
        return torch.amp.GradScaler(self._device.type, enabled=enabled)

    def names(self) -> Iterator[tuple[str, nn.Parameter]]:
        """See Parallel."""
        return ((name, one) for name, one in self.model.named_parameters(remove_duplicate=False) if one.requires_grad)

    def state(self) -> dict[str, torch.Tensor]:
        """See Parallel."""
        return self.model.state_dict()

    def load(self, state: Named) -> None:
        """See Parallel."""
        self.model.load_state_dict(state)

    def files(self, label: str, groups: Groups) -> tuple[dict[str, Named], Offsets]:
        """See Parallel: one file a group, of the whole."""
        return dict(groups), {}

    def read(self, path: Path) -> dict[str, dict[str, torch.Tensor]]:
        """See Parallel: nothing is shared."""
        return {}


def build(
    kind: str,
    model: nn.Module,
    device: torch.device,
    ranks: Ranks,
    compiled: Callable[[nn.Module], nn.Module] | None = None,
) -> Parallel:
    """The model, on the device, shared in that way, and compiled for the steps of a training if that is given."""
    if kind == "fsdp":
        from workflow_lib.distributed.fsdp import Sharded  # torch's part of it takes a second to import

        return Sharded(model, device, ranks)
    return Replicated(model, device, ranks.world_size, compiled)
