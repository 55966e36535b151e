"""Reads of a checkpoint that many ranks have written, by as many ranks or by others: torch.distributed.checkpoint.

Each rank says which rows of each tensor it wants, and gets them from whatever files hold them. Nothing is unpickled:
the reader knows safetensors only.
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

Rows = tuple[int, int]  # first, and the one after the last
Wish = Callable[[str, torch.Size], Rows | None]


def read(path: Path, wish: Wish) -> dict[str, torch.Tensor]:
    """The rows of each tensor that the wish names, given its name and whole shape, on the CPU; all of it at None."""
    reader = HuggingFaceStorageReader(str(path))
    firsts: dict[str, int] = {}
    parts: dict[str, torch.Tensor] = {}
    for name, saved in reader.read_metadata().state_dict_metadata.items():
        if isinstance(saved, TensorStorageMetadata):
            rows = wish(name, saved.size)
            firsts[name] = rows[0] if rows else 0
            shape = (rows[1] - rows[0], *saved.size[1:]) if rows else saved.size
            parts[name] = torch.empty(shape, dtype=saved.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        # each rank reads for itself, since torch would exchange pickled objects between ranks
        dcp.load(parts, storage_reader=reader, planner=_Planner(firsts), no_dist=True)
    return parts


class _Planner(LoadPlanner):
    """Plain tensors, of which some are rows of a larger one."""

    def __init__(self, firsts: Mapping[str, int]) -> None:
        self._firsts = firsts

    def set_up_planner(
        self,
        state_dict: dict[str, torch.Tensor],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        """See torch."""
        self._parts = state_dict
        self._saved = metadata.state_dict_metadata if metadata is not None else {}

    def create_local_plan(self) -> LoadPlan:
        """See torch."""
        items: list[ReadItem] = []
        for name, part in self._parts.items():
            offsets = torch.Size((self._firsts[name], *[0] * part.dim())[: part.dim()])
            saved = self._saved[name]
            if isinstance(saved, TensorStorageMetadata):
                items += create_read_items_for_chunk_list(name, saved, [ChunkStorageMetadata(offsets, part.shape)])
        return LoadPlan(items)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """See torch."""
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """See torch."""
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """See torch; a checkpoint has tensors only."""
        raise TypeError(f"{read_item.dest_index.fqn} is no tensor")

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        """See torch."""
        part = self._parts[read_item.dest_index.fqn]
        for dimension, (first, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            part = part.narrow(dimension, first, length)
        return part

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """See torch; it is in place already."""
