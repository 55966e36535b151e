"""The place of a process in its training, and the exchange of values between ranks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workflow_lib.errors import RankError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """The place of a process in its training.

    Each node has a launcher, the parent of its ranks. It must never touch CUDA, since a process that has started CUDA
    cannot fork ranks that use it. The launcher of the first node owns the workspace.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    node: int = 0
    is_launcher: bool = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Ranks:
        """Return the rank that torch's elastic agent started; in any other process, the launcher of the node."""
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
        """True for rank 0 and for the launcher of the first node, which write logs and files for all."""
        return self.rank == 0 and self.node == 0

    @property
    def is_owner(self) -> bool:
        """True for the launcher of the first node, which owns the workspace."""
        return self.is_launcher and self.node == 0


@dataclass(frozen=True)
class Peers:
    """A group of ranks that exchange values; by default a single rank. All make the same calls in the same order."""

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """True for rank 0."""
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """Broadcast the JSON value of rank 0 to every rank; the values of the other ranks are ignored."""
        if self.group is None:
            return value
        import torch
        import torch.distributed as dist

        sent = _packed(json.dumps(value).encode()) if self.is_main else torch.empty(0, dtype=torch.uint8)
        with self._explained():
            size = torch.tensor(len(sent))
            dist.broadcast(size, src=0, group=self.group)
            sent = sent if self.is_main else torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(sent, src=0, group=self.group)
        return json.loads(_unpacked(sent))

    def gather(self, value: Any) -> list[Any]:
        """Gather the JSON values of all ranks on rank 0, in the order of ranks; an empty list elsewhere."""
        if self.group is None:
            return [value]
        return [json.loads(sent) for sent in self._gathered(json.dumps(value).encode())]

    def gather_tensors(self, named: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """Gather small CPU tensors on rank 0, in the order of ranks; an empty list elsewhere."""
        if self.group is None:
            return [named]
        from safetensors.torch import load, save

        return [load(sent) for sent in self._gathered(save(named))]

    def _gathered(self, sent: bytes) -> list[bytes]:
        """Gather bytes on rank 0. torch's own collectives of objects would unpickle data from the network."""
        import torch
        import torch.distributed as dist

        with self._explained():
            sizes = [torch.tensor(0) for _ in range(self.world_size)]
            dist.all_gather(sizes, torch.tensor(len(sent)), group=self.group)
            padded = _packed(sent.ljust(int(max(sizes)), b"\0"))  # `gather` needs tensors of one size
            found = [torch.empty_like(padded) for _ in sizes] if self.is_main else None
            dist.gather(padded, found, group=self.group)
        return [_unpacked(padded[: int(size)]) for padded, size in zip(found or (), sizes, strict=False)]

    def broadcast_tensors(self, groups: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
        """Broadcast the CPU tensors of rank 0, by group and name; the arguments of the other ranks are ignored.

        Each tensor is received directly into its own memory, so a rank holds one copy of the state. One large object
        would need several.
        """
        if self.group is None:
            return groups
        import torch
        import torch.distributed as dist

        kinds = self.broadcast(
            {
                group: {
                    key: (str(value.dtype).removeprefix("torch."), list(value.shape)) for key, value in named.items()
                }
                for group, named in groups.items()
            }
        )
        if not self.is_main:
            groups = {
                group: {key: torch.empty(shape, dtype=getattr(torch, dtype)) for key, (dtype, shape) in named.items()}
                for group, named in kinds.items()
            }
        with self._explained():
            for tensor in (tensor for named in groups.values() for tensor in named.values() if tensor.numel()):
                dist.broadcast(tensor.view(-1).view(torch.uint8), src=0, group=self.group)
        return groups

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise RankError where torch reports that another rank is gone."""
        try:
            yield
        except RuntimeError as error:
            raise RankError(f"rank {self.rank} lost the connection to another rank: {error}") from error


def _packed(data: bytes) -> torch.Tensor:
    import torch

    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _unpacked(data: torch.Tensor) -> bytes:
    return data.numpy().tobytes()
