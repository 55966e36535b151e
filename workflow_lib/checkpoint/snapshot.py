"""A state that is saved or was loaded, and its files, written durably."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib.checkpoint import safetensors
from workflow_lib.checkpoint.manifest import (
    ALGORITHMS,
    CHUNK,
    STATE,
    VERSION,
    Checkpoint,
    files_of,
    new_hasher,
    read_state,
    read_tensors,
)

if TYPE_CHECKING:
    import torch


WRITEBACK = 8 << 20  # bytes after which the disk begins to write them


@dataclass(frozen=True)
class Snapshot:
    """A state that is saved, or was loaded: ``tensors[group][name]``, and JSON for the rest.

    step      optimizer steps done
    state     JSON values, in `state.json`
    about     JSON values for readers of the manifest
    offsets   of a tensor that the ranks share, this rank's part begins at ``offsets[group][name]``
    stable    groups on the CPU that nobody changes after the snapshot is taken, so that a save need not copy them
    """

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)
    offsets: Mapping[str, Mapping[str, list[int]]] = field(default_factory=dict)
    stable: frozenset[str] = frozenset()

    def mutable(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the groups of tensors that a save has to copy."""
        return {group: named for group, named in self.tensors.items() if group not in self.stable}


def read_snapshot(checkpoint: Checkpoint) -> Snapshot:
    """Return the contents of a checkpoint that one rank wrote, verified. Raises CheckpointError."""
    state = read_state(checkpoint)
    groups = [Path(name).stem for name, _ in files_of(checkpoint) if name != STATE]
    tensors = {group: read_tensors(checkpoint, group) for group in groups}
    return Snapshot(checkpoint.step, tensors, state, checkpoint.about)


def write_groups(directory: Path, snapshot: Snapshot) -> dict[str, Any] | str:
    """Write a durable file per group; return sizes and digests, or the error text, since rank 0 waits for it."""
    try:
        return {
            f"{group}.safetensors": write_synced(
                directory / f"{group}.safetensors", safetensors.encode(group, tensors, snapshot.offsets.get(group))
            )
            for group, tensors in sorted(snapshot.tensors.items())
        }
    except Exception as error:
        return str(error) or repr(error)


def write_synced(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write the chunks to a new file and sync it; return its size and digest."""
    hasher, size, begun = new_hasher(), 0, 0
    with path.open("xb", buffering=0) as file:
        for chunk in chunks:
            for start in range(0, len(chunk), CHUNK):
                sys.audit("everstep", "write", str(path))
                piece = chunk[start : start + CHUNK]
                hasher.update(piece)
                written = 0
                while written < len(piece):
                    written += file.write(piece[written:])
                size += len(piece)
                if size - begun >= WRITEBACK:
                    _begin_writeback(file.fileno(), begun, size - begun)
                    begun = size
        sys.audit("everstep", "fsync", str(path))
        os.fsync(file.fileno())
    return {"bytes": size, ALGORITHMS[VERSION]: hasher.hexdigest()}


def _begin_writeback(descriptor: int, start: int, length: int) -> None:
    """Let the kernel write these bytes to the disk now, while the next ones are hashed.

    Linux does so when it is told that they are not needed (mm/fadvise.c). Otherwise it would begin at the fsync.
    """
    if advise := getattr(os, "posix_fadvise", None):  # macOS has none
        with suppress(OSError):  # a hint; an error of the disk is reported by the fsync
            advise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
