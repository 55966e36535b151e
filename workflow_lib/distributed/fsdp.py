"""FSDP2: every rank holds a part of each tensor of the model, of its gradient and of the optimizer's moments.

torch cuts each tensor along its first dimension, as ``torch.chunk`` does. The parts that it keeps as DTensors are seen
here as plain tensors in the same memory.
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

CUT = ("model", "optimizer", "ema", "best")  # groups with tensors of which a rank may have a part
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Sharded:
    """Every rank has a part of each tensor, and FSDP2 gathers one block of the model at a time to compute with it.

    Each unit (see ``units``) is gathered for its forward and again for its backward pass. Gradients are summed over the
    ranks after every micro-batch, so that no rank ever holds those of the whole model.
    """

    is_shared = True

    def __init__(self, model: nn.Module, device: torch.device, ranks: Ranks) -> None:
        self._device, self._rank, self._world = device, ranks.rank, ranks.world_size
        for name, one in model.named_parameters():
            if one.dim() == 0:
                raise ConfigError(
                    f"training.parallel: fsdp cannot cut the weight {name}, a single number; allowed: ddp, or a model "
                    f"in which it is a vector of length 1"
                )
        mesh = init_device_mesh(device.type, (ranks.world_size,))
        for unit in (*units(model), model):
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        self.model = model
        cut = [one for one in model.parameters() if one.requires_grad]
        self.parameters = [nn.Parameter(_part(one)) for one in cut]
        self._pairs = list(zip(cut, self.parameters, strict=True))
        self._cut = {name: one.shape for name, one in model.state_dict().items() if isinstance(one, DTensor)}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """See Parallel. Buffers are those of rank 0 before, as DistributedDataParallel has it."""
        for buffer in self.model.buffers():
            dist.broadcast(buffer, src=0)
        outputs: torch.Tensor = self.model(inputs)
        return outputs

    def serve(self, inputs: torch.Tensor, averages: Named | None) -> torch.Tensor:
        """See Parallel."""
        with self._exchanged(averages or {}):
            outputs: torch.Tensor = self.model(inputs)
        return outputs

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """See Parallel; they are summed all the same: what is not cut needs the memory of a whole model."""
        return contextlib.nullcontext()

    def zero_grad(self) -> None:
        """See Parallel."""
        for cut, part in self._pairs:
            cut.grad = part.grad = None

    def take_gradients(self) -> None:
        """See Parallel."""
        for cut, part in self._pairs:
            part.grad = None if cut.grad is None else _part(cut.grad)

    def clip(self, norm: float) -> torch.Tensor:
        """See Parallel."""
        length = nn.utils.clip_grad_norm_([cut for cut, _ in self._pairs], norm)
        return length.full_tensor() if isinstance(length, DTensor) else length

    def scaler(self, *, enabled: bool) -> torch.amp.GradScaler:
        """See Parallel."""
        return ShardedScaler(self._device.type, enabled=enabled)

    def names(self) -> Iterator[tuple[str, nn.Parameter]]:
        """See Parallel."""
        parts = {id(cut): part for cut, part in self._pairs}
        everyone = self.model.named_parameters(remove_duplicate=False)
        return ((name, parts[id(one)]) for name, one in everyone if id(one) in parts)

    def state(self) -> dict[str, torch.Tensor]:
        """See Parallel."""
        return {name: _part(one) for name, one in self.model.state_dict(keep_vars=True).items()}

    @torch.no_grad()
    def load(self, state: Named) -> None:
        """See Parallel."""
        for name, one in self.state().items():
            one.copy_(state[name])

    def files(self, label: str, groups: Groups) -> tuple[dict[str, Named], Offsets]:
        """See Parallel: what is cut in a file of each rank; what all have alike is saved by rank 0."""
        mine: dict[str, torch.Tensor] = {}
        offsets: dict[str, list[int]] = {}
        for group in (one for one in CUT if one in groups):
            for name, one in groups[group].items():
                whole = self._whole(group, name)
                is_cut = whole is not None and one.shape == self._shape(whole)
                if one.numel() if is_cut else self._rank == 0:
                    mine[f"{group}.{name}"] = one
                    first = self._rows(whole)[0] if is_cut and whole is not None else 0
                    offsets[f"{group}.{name}"] = [first, *[0] * one.dim()][: one.dim()]
        others = {group: named for group, named in groups.items() if group not in CUT and self._rank == 0}
        if not any(group in CUT for group in groups):
            return others, {}
        file = f"{label}-{self._rank:05d}-of-{self._world:05d}"
        return {**others, file: mine}, {file: offsets}

    def read(self, path: Path) -> dict[str, dict[str, torch.Tensor]]:
        """The groups of this rank, on the CPU, of a verified checkpoint that any number of ranks has saved."""

        def wish(key: str, shape: torch.Size) -> tuple[int, int] | None:
            return self._rows(shape) if self._whole(*key.split(".", 1)) == shape else None

        groups: dict[str, dict[str, torch.Tensor]] = {}
        for key, one in resharding.read(path, wish).items():
            kind, name = key.split(".", 1)
            groups.setdefault(kind, {})[name] = one
        return groups

    def _whole(self, group: str, name: str) -> torch.Size | None:
        """Shape of the whole tensor that is cut, or would be if it has that shape; None where nothing is cut."""
        if group == "optimizer":
            return self._pairs[int(name.split(".", 1)[0])][0].shape
        return self._cut.get(name) if group in CUT else None

    def _rows(self, whole: torch.Size) -> tuple[int, int]:
        """First row of this rank, and the one after its last: as torch.chunk has it."""
        size = math.ceil(whole[0] / self._world)
        return min(whole[0], self._rank * size), min(whole[0], (self._rank + 1) * size)

    def _shape(self, whole: torch.Size) -> torch.Size:
        first, last = self._rows(whole)
        return torch.Size((last - first, *whole[1:]))

    @contextlib.contextmanager
    def _exchanged(self, averages: Named) -> Iterator[None]:
        """The model computes with the averages, and they are its weights meanwhile."""
        self._exchange(averages)
        try:
            yield
        finally:
            self._exchange(averages)

    @torch.no_grad()
    def _exchange(self, averages: Named) -> None:
        for part, average in zip(self.parameters, averages.values(), strict=False):
            kept = part.clone()
            part.copy_(average)
            average.copy_(kept)


def units(model: nn.Module) -> list[nn.Module]:
    """What is gathered as one: the members of each outermost Sequential, ModuleList or ModuleDict, such as blocks.

    One that shares a weight with another part of the model is gathered with the rest of the model.
    """
    everywhere = _uses(model)
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if not isinstance(module, CONTAINERS) or isinstance(child, CONTAINERS):
                visit(child)
            elif (inside := _uses(child)) and inside.items() <= everywhere.items():
                found.append(child)

    visit(model)
    return found


def _uses(module: nn.Module) -> Counter[int]:
    """How often each parameter is used, by its identity."""
    return Counter(id(one) for _, one in module.named_parameters(remove_duplicate=False))


def _part(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank has of a tensor, in the same memory."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
