"""A state to be saved, and its files, written durably."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib.checkpoint import safetensors
from workflow_lib.checkpoint.manifest import CHUNK

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Snapshot:
    """A state to be saved: ``tensors[group][name]`` on the CPU, and JSON for the rest.

    Of a tensor that the ranks share, this rank's part begins at ``offsets[group][name]``.
    """

    step: int
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    state: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)
    offsets: Mapping[str, Mapping[str, list[int]]] = field(default_factory=dict)


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
    """The size and digest of a new file that holds the chunks, durably."""
    hasher, size = hashlib.blake2b(digest_size=32), 0
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
        sys.audit("everstep", "fsync", str(path))
        os.fsync(file.fileno())
    return {"bytes": size, "blake2b": hasher.hexdigest()}
