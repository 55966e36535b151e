"""Values that all ranks have to agree on, exchanged in one order of ranks, so that sums do not depend on timing.

Uses a gloo group of its own: the collectives of the model must not be mixed with these.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from workflow_lib.distributed.ranks import Peers, Ranks


class Agreement:
    """Collectives of the training loop: all ranks call each of them in the same order."""

    def __init__(self, ranks: Ranks) -> None:
        self._world_size = ranks.world_size
        self._group = dist.new_group(backend="gloo") if ranks.world_size > 1 else None
        self.peers = Peers(ranks.rank, ranks.world_size, self._group)

    def any_of(self, *flags: bool) -> list[bool]:
        """Return, for each flag, True if it is set on any rank."""
        if self._group is None:
            return list(flags)
        vote = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(vote, op=dist.ReduceOp.MAX, group=self._group)
        return [bool(flag) for flag in vote.tolist()]

    def all_gather(self, value: torch.Tensor) -> list[torch.Tensor]:
        """Return the CPU tensors of all ranks, in the order of ranks."""
        if self._group is None:
            return [value]
        values = [torch.empty_like(value) for _ in range(self._world_size)]
        dist.all_gather(values, value, group=self._group)
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Copy the buffers of rank 0 to all ranks: each rank's statistics are of its own samples only."""
        if self._group is not None:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)
