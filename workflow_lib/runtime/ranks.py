"""Which of the training's processes this one is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workflow_lib.errors import RankError

if TYPE_CHECKING:
    import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """Place of a process among those of its training.

    The launcher is the parent of the ranks: it owns the workspace and must never touch CUDA, since a process
    that has cannot be forked. There is one on each node.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    node: int = 0
    is_launcher: bool = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Ranks:
        """Place that torch's elastic agent gave to this process; outside of it, the launcher of its node."""
        if "RANK" not in environ:
            return cls(node=int(environ.get("SLURM_NODEID", 0)), is_launcher=True)
        return cls(
            rank=int(environ["RANK"]),
            local_rank=int(environ["LOCAL_RANK"]),
            world_size=int(environ["WORLD_SIZE"]),
            node=int(environ.get("GROUP_RANK", 0)),
        )

    @property
    def is_main(self) -> bool:
        """True for the one process that speaks and writes: rank 0, and the launcher of the first node."""
        return self.rank == 0 and self.node == 0

    @property
    def is_owner(self) -> bool:
        """True for the one process that owns the workspace: the launcher of the first node."""
        return self.is_launcher and self.node == 0


@dataclass(frozen=True)
class Peers:
    """The ranks that do one thing together; one alone if nothing else is said. All ask in the same order."""

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """True for rank 0."""
        return self.rank == 0

    def announce(self, value: Any) -> Any:
        """The value of rank 0, on every rank."""
        if self.group is None:
            return value
        import torch.distributed as dist

        told = [value]
        with self._named():
            dist.broadcast_object_list(told, src=0, group=self.group)
        return told[0]

    def collect(self, value: Any) -> list[Any]:
        """On rank 0 the values of all, in the order of ranks; nothing elsewhere."""
        if self.group is None:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        with self._named():
            dist.gather_object(value, values if self.is_main else None, group=self.group)
        return values if self.is_main else []

    def spread(self, groups: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
        """The CPU tensors of rank 0 by group and name, on every rank; what the others give is not looked at.

        They are sent one by one, from place to place: a rank holds one copy of them, not the several that an object
        of them all would cost.
        """
        if self.group is None:
            return groups
        import torch
        import torch.distributed as dist

        kinds = {group: {key: (one.dtype, one.shape) for key, one in named.items()} for group, named in groups.items()}
        kinds = self.announce(kinds)
        if not self.is_main:
            groups = {
                group: {key: torch.empty(shape, dtype=dtype) for key, (dtype, shape) in named.items()}
                for group, named in kinds.items()
            }
        with self._named():
            for tensor in (tensor for named in groups.values() for tensor in named.values() if tensor.numel()):
                dist.broadcast(tensor.view(-1).view(torch.uint8), src=0, group=self.group)
        return groups

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What torch says when another rank is gone becomes an error of ours."""
        try:
            yield
        except RuntimeError as error:
            raise RankError(f"rank {self.rank} has lost another one: {error}") from error
