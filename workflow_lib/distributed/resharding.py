"""Read a checkpoint that any number of ranks has written, by torch.distributed.checkpoint.

Each rank names the rows of each tensor that it needs, and gets them from the files that hold them. The files are
safetensors, so nothing is unpickled.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

Rows = tuple[int, int]  # first row, and the row after the last
Select = Callable[[str, torch.Size], Rows | None]


def read(path: Path, select: Select) -> dict[str, torch.Tensor]:
    """Return the requested rows of each tensor, on the CPU.

    ``select`` gets the name and the shape of the whole tensor. It returns None for all rows.
    """
    reader = HuggingFaceStorageReader(str(path))
    firsts: dict[str, int] = {}
    parts: dict[str, torch.Tensor] = {}
    for name, saved in reader.read_metadata().state_dict_metadata.items():
        if isinstance(saved, TensorStorageMetadata):
            rows = select(name, saved.size)
            firsts[name] = rows[0] if rows else 0
            shape = (rows[1] - rows[0], *saved.size[1:]) if rows else saved.size
            parts[name] = torch.empty(shape, dtype=saved.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        # each rank reads for itself, since torch would exchange pickled objects between ranks
        dcp.load(parts, storage_reader=reader, planner=_Planner(firsts), no_dist=True)
    return parts


class _Planner(LoadPlanner):
    """A plan to load plain tensors, some of which are rows of a larger tensor."""

    def __init__(self, firsts: Mapping[str, int]) -> None:
        self._firsts = firsts

    def set_up_planner(
        self,
        state_dict: dict[str, torch.Tensor],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        self._parts = state_dict
        self._saved = metadata.state_dict_metadata if metadata is not None else {}

    def create_local_plan(self) -> LoadPlan:
        items: list[ReadItem] = []
        for name, part in self._parts.items():
            offsets = torch.Size((self._firsts[name], *[0] * part.dim())[: part.dim()])
            saved = self._saved[name]
            if isinstance(saved, TensorStorageMetadata):
                items += create_read_items_for_chunk_list(name, saved, [ChunkStorageMetadata(offsets, part.shape)])
        return LoadPlan(items)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Raise TypeError: a checkpoint contains tensors only."""
        raise TypeError(f"{read_item.dest_index.fqn} is not a tensor")

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        part = self._parts[read_item.dest_index.fqn]
        for dimension, (first, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            part = part.narrow(dimension, first, length)
        return part

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """Do nothing: the tensor was read directly into its place."""
