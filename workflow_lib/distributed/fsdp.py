"""FSDP2: every rank holds a shard of each tensor of the model, of its gradient and of the optimizer's moments.

torch shards each tensor along its first dimension, as ``torch.chunk`` does. The shards are DTensors; this module gives
the optimizer plain tensors in the same memory.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from workflow_lib.distributed import resharding
from workflow_lib.distributed.parallel import Groups, Named, Offsets
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.errors import ConfigError
from workflow_lib.runtime.torch_internals import ShardedScaler

SHARDED = ("model", "optimizer", "ema", "best")  # groups of a checkpoint that may contain shards
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Sharded:
    """A shard of each tensor on every rank. FSDP2 gathers one unit of the model at a time (see ``units``).

    A unit is gathered for its forward and again for its backward pass. Gradients are reduced over the ranks after every
    micro-batch, so that no rank ever holds those of the whole model.
    """

    is_shared = True

    def __init__(self, model: nn.Module, device: torch.device, ranks: Ranks) -> None:
        self._device, self._rank, self._world = device, ranks.rank, ranks.world_size
        for name, weight in model.named_parameters():
            if weight.dim() == 0:
                raise ConfigError(
                    f"training.parallel: fsdp cannot shard the weight {name}, a single number; allowed: ddp, or a "
                    f"model in which it is a vector of length 1"
                )
        mesh = init_device_mesh(device.type, (ranks.world_size,))
        for unit in (*units(model), model):
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        self.model = model
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.parameters = [nn.Parameter(_shard(weight)) for weight in trained]
        self._pairs = list(zip(trained, self.parameters, strict=True))
        self._weights = {id(shard): weight for weight, shard in self._pairs}
        self.optimized = self.parameters
        self._whole_shapes = {
            name: value.shape for name, value in model.state_dict().items() if isinstance(value, DTensor)
        }

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        # buffers are not sharded: as DistributedDataParallel does, take those of rank 0 before each forward pass
        for buffer in self.model.buffers():
            dist.broadcast(buffer, src=0)
        outputs: torch.Tensor = self.model(inputs)
        return outputs

    def eval_forward(self, inputs: torch.Tensor, averages: Named | None) -> torch.Tensor:
        with self._exchanged(averages or {}):
            outputs: torch.Tensor = self.model(inputs)
        return outputs

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: gradients are reduced anyway, since unreduced ones need the memory of the whole model."""
        return contextlib.nullcontext()

    def zero_grad(self) -> None:
        for weight, shard in self._pairs:
            weight.grad = shard.grad = None

    def take_gradients(self) -> None:
        for weight, shard in self._pairs:
            shard.grad = None if weight.grad is None else _shard(weight.grad)

    def clip(self, norm: float) -> torch.Tensor:
        before = nn.utils.clip_grad_norm_([weight for weight, _ in self._pairs], norm)
        return before.full_tensor() if isinstance(before, DTensor) else before

    def scaler(self, *, enabled: bool) -> torch.amp.GradScaler:
        return ShardedScaler(self._device.type, enabled=enabled)

    def names(self) -> Iterator[tuple[str, nn.Parameter]]:
        shards = {id(weight): shard for weight, shard in self._pairs}
        named = self.model.named_parameters(remove_duplicate=False)
        return ((name, shards[id(weight)]) for name, weight in named if id(weight) in shards)

    def state(self) -> dict[str, torch.Tensor]:
        return {name: _shard(value) for name, value in self.model.state_dict(keep_vars=True).items()}

    @torch.no_grad()
    def load(self, state: Named) -> None:
        for name, value in self.state().items():
            value.copy_(state[name])

    def files(self, label: str, groups: Groups) -> tuple[dict[str, Named], Offsets]:
        """Return one file with the shards of this rank. Rank 0 also saves the tensors that are equal on all ranks."""
        mine: dict[str, torch.Tensor] = {}  # the tensors that this rank saves
        offsets: dict[str, list[int]] = {}
        for group in (group for group in SHARDED if group in groups):
            for name, value in groups[group].items():
                whole = self._whole_shape(group, name)
                # an optimizer may also have scalars for a sharded weight, such as the count of its steps
                is_shard = whole is not None and value.shape == self._shard_shape(whole)
                if value.numel() if is_shard else self._rank == 0:
                    mine[f"{group}.{name}"] = value
                    first = self._rows(whole)[0] if is_shard and whole is not None else 0
                    # an offset for each dimension; none for a scalar
                    offsets[f"{group}.{name}"] = [first, *[0] * value.dim()][: value.dim()]
        others = {group: named for group, named in groups.items() if group not in SHARDED and self._rank == 0}
        if not any(group in SHARDED for group in groups):
            return others, {}
        file = f"{label}-{self._rank:05d}-of-{self._world:05d}"
        return {**others, file: mine}, {file: offsets}

    def read(self, path: Path) -> dict[str, dict[str, torch.Tensor]]:
        """Return the groups of this rank, on the CPU, of a verified checkpoint that any number of ranks has saved."""

        def select(key: str, shape: torch.Size) -> resharding.Rows | None:
            return self._rows(shape) if self._whole_shape(*key.split(".", 1)) == shape else None

        groups: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in resharding.read(path, select).items():
            kind, name = key.split(".", 1)
            groups.setdefault(kind, {})[name] = value
        return groups

    def _whole_shape(self, group: str, name: str) -> torch.Size | None:
        """Return the shape of the whole tensor if its weight is sharded, else None.

        The tensors of an optimizer are named by the index of their weight. Only those of its shape are sharded.
        """
        if group == "optimizer":
            return self._weights[id(self.optimized[int(name.split(".", 1)[0])])].shape
        return self._whole_shapes.get(name) if group in SHARDED else None

    def _rows(self, whole: torch.Size) -> tuple[int, int]:
        """Return the first row of this rank and the row after its last, as ``torch.chunk`` divides them."""
        size = math.ceil(whole[0] / self._world)
        return min(whole[0], self._rank * size), min(whole[0], (self._rank + 1) * size)

    def _shard_shape(self, whole: torch.Size) -> torch.Size:
        first, last = self._rows(whole)
        return torch.Size((last - first, *whole[1:]))

    @contextlib.contextmanager
    def _exchanged(self, averages: Named) -> Iterator[None]:
        """Swap weights and averages in the block, in place, since a second copy of the weights may not fit."""
        self._exchange(averages)
        try:
            yield
        finally:
            self._exchange(averages)

    @torch.no_grad()
    def _exchange(self, averages: Named) -> None:
        # not strict: without averages there is nothing to swap
        for shard, average in zip(self.parameters, averages.values(), strict=False):
            weight = shard.clone()
            shard.copy_(average)
            average.copy_(weight)


def units(model: nn.Module) -> list[nn.Module]:
    """Return the modules to gather one at a time: the members of each outermost container, such as blocks.

    A member that shares a weight with another part of the model is gathered with the rest of the model.
    """
    everywhere = _uses(model)
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if not isinstance(module, CONTAINERS) or isinstance(child, CONTAINERS):
                visit(child)
            # equal counts: none of its weights is also used outside of it
            elif (inside := _uses(child)) and inside.items() <= everywhere.items():
                found.append(child)

    visit(model)
    return found


def _uses(module: nn.Module) -> Counter[int]:
    """Count the uses of each parameter, by its identity."""
    return Counter(id(weight) for _, weight in module.named_parameters(remove_duplicate=False))


def _shard(tensor: torch.Tensor) -> torch.Tensor:
    """Return the shard of this rank in the same memory; the tensor itself if it is not sharded."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
