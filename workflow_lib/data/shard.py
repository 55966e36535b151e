"""The file format of a shard: inputs, targets, and the digest of both."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workflow_lib.checkpoint import safetensors
from workflow_lib.data.source import bytes_of, content_digest
from workflow_lib.files import open_regular, write_atomic


@dataclass(frozen=True)
class ShardContent:
    """The arrays of a shard, and the digest that its file gives for them."""

    inputs: np.ndarray
    targets: np.ndarray
    digest: str


def read_shard(path: Path) -> ShardContent | None:
    """Return the content of a shard, verified; None if the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular(path):  # safe_open would follow a link and wait for a pipe
            pass
        with safe_open(path, framework="numpy") as file:
            inputs, targets = file.get_tensor("inputs"), file.get_tensor("targets")
            digest = (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None
    return ShardContent(inputs, targets, digest) if digest == content_digest(inputs, targets) else None


def write_shard(path: Path, inputs: np.ndarray, targets: np.ndarray) -> None:
    """Write a shard as a safetensors file, atomically and without copying the arrays."""
    # int64 targets first: then every array is aligned to the size of its type
    entries = {name: _entry(array) for name, array in (("targets", targets), ("inputs", inputs))}
    header = {"__metadata__": {"digest": content_digest(inputs, targets)}, **safetensors.header_of(entries)}
    write_atomic(path, [*safetensors.pieces_of(json.dumps(header, separators=(",", ":")).encode(), entries)])


def _entry(array: np.ndarray) -> safetensors.Entry:
    dtype = safetensors.DTYPES[array.dtype.name]
    return safetensors.Entry(dtype, list(array.shape), [bytes_of(np.ascontiguousarray(array))])


def map_shard(path: Path) -> ShardContent | None:
    """Return a shard whose arrays are mapped from the file; None if the file is missing or truncated.

    The content is not verified: `is_whole` does that.
    """
    try:
        with open_regular(path) as file:
            header, begin = safetensors.read_header(file, os.fstat(file.fileno()).st_size)
        inputs, targets = (_map(path, begin, header[name]) for name in ("inputs", "targets"))
        return ShardContent(inputs, targets, header["__metadata__"]["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _map(path: Path, start: int, entry: Any) -> np.ndarray:
    shape, kind = tuple(entry["shape"]), safetensors.NAMES[entry["dtype"]]
    if not math.prod(shape):
        return np.empty(shape, kind)
    first, last = entry["data_offsets"]
    if last - first != math.prod(shape) * np.dtype(kind).itemsize:
        raise ValueError("shape and size do not match")
    return np.memmap(path, kind, mode="r", offset=start + first, shape=shape)


def is_whole(stored: ShardContent) -> bool:
    """Return True if the content matches its digest. Reads all of it once, and does not keep it in memory."""
    return stored.digest == content_digest(stored.inputs, stored.targets)
