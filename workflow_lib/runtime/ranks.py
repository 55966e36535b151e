"""Which of the training's processes this one is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


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
