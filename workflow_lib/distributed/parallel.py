"""Data parallelism: each rank holds the whole model (``ddp``), or a shard of each of its tensors (``fsdp``).

Optimizer, averages and checkpoints see plain tensors only. Under fsdp these are the shards of this rank, in the memory
of the model itself. If each rank updates its shards, element by element, the whole model is updated.
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
    """The model of one rank."""

    model: nn.Module
    """The model as it was built, to switch modes and to read buffers."""
    parameters: list[nn.Parameter]
    """The tensors that the optimizer updates."""
    optimized: list[nn.Parameter]
    """The same tensors in the order of the optimizer, which names its own tensors by their place in it."""
    is_shared: bool
    """True if each rank has its own shards, and saves them itself."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs in training. The backward pass averages gradients over the ranks."""

    def eval_forward(self, inputs: torch.Tensor, averages: Named | None) -> torch.Tensor:
        """Return the outputs of the averaged weights if given, else of the weights.

        If the model is shared, all ranks must call this equally often.
        """

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """In this context, backward passes need not exchange gradients, since another backward pass follows."""

    def zero_grad(self) -> None:
        """Remove the gradients of all parameters."""

    def take_gradients(self) -> None:
        """Give ``parameters`` the gradients of the backward pass."""

    def clip(self, norm: float) -> torch.Tensor:
        """Scale the gradient of the whole model to at most this norm; return its norm before."""

    def scaler(self, *, enabled: bool) -> torch.amp.GradScaler:
        """Return the gradient scaler for fp16, which skips a step on all ranks or on none."""

    def names(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield each trained parameter under each of its names; a tied parameter has several."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return weights and buffers, in the memory of the model."""

    def load(self, state: Named) -> None:
        """Copy weights and buffers into the model."""

    def files(self, label: str, groups: Groups) -> tuple[dict[str, Named], Offsets]:
        """Return the tensors that this rank saves, by file, and the first index of each shard in its whole tensor."""

    def read(self, path: Path) -> dict[str, dict[str, torch.Tensor]]:
        """Return the shards that this rank needs from a verified checkpoint, on the CPU; empty if nothing is shared."""


class Replicated:
    """The whole model on every rank; DistributedDataParallel averages the gradients."""

    is_shared = False

    def __init__(
        self, model: nn.Module, device: torch.device, world_size: int, compiled: Callable[[nn.Module], nn.Module] | None
    ) -> None:
        self.model = model.to(device)
        trained = compiled(model) if compiled is not None else model
        self.optimized = self.parameters = [weight for weight in model.parameters() if weight.requires_grad]
        self._device = device
        self._ddp: nn.parallel.DistributedDataParallel | None = None
        if world_size > 1:
            ids = [device] if device.type == "cuda" else None
            self._ddp = nn.parallel.DistributedDataParallel(trained, device_ids=ids, gradient_as_bucket_view=True)
        self.forward: nn.Module = self._ddp or trained

    def eval_forward(self, inputs: torch.Tensor, averages: Named | None) -> torch.Tensor:
        outputs: torch.Tensor = torch.func.functional_call(self.model, dict(averages or {}), (inputs,))
        return outputs

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        return self._ddp.no_sync() if self._ddp is not None else contextlib.nullcontext()

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def take_gradients(self) -> None:
        """Do nothing: the parameters are the model's own and have them already."""

    def clip(self, norm: float) -> torch.Tensor:
        return nn.utils.clip_grad_norm_(self.parameters, norm)

    def scaler(self, *, enabled: bool) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self._device.type, enabled=enabled)

    def names(self) -> Iterator[tuple[str, nn.Parameter]]:
        return (named for named in self.model.named_parameters(remove_duplicate=False) if named[1].requires_grad)

    def state(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def load(self, state: Named) -> None:
        self.model.load_state_dict(state)

    def files(self, label: str, groups: Groups) -> tuple[dict[str, Named], Offsets]:
        """Return one file for each group, with whole tensors."""
        return dict(groups), {}

    def read(self, path: Path) -> dict[str, dict[str, torch.Tensor]]:
        return {}


def build(
    kind: str,
    model: nn.Module,
    device: torch.device,
    ranks: Ranks,
    compiled: Callable[[nn.Module], nn.Module] | None = None,
) -> Parallel:
    """Move the model to the device and distribute it; ``compiled`` compiles it for the training steps (ddp only)."""
    if kind == "fsdp":
        from workflow_lib.distributed.fsdp import Sharded  # its imports from torch take a second

        return Sharded(model, device, ranks)
    return Replicated(model, device, ranks.world_size, compiled)
