"""A shard on disk: inputs, targets, and the digest of both."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workflow_lib.data.source import bytes_of, content_digest
from workflow_lib.files import open_regular, write_atomic

NAMES = {"uint8": "U8", "int32": "I32", "int64": "I64", "float32": "F32"}  # of the types in safetensors
TYPES = {name: kind for kind, name in NAMES.items()}


@dataclass(frozen=True)
class Stored:
    """The content of a shard, and its digest."""

    inputs: np.ndarray
    targets: np.ndarray
    digest: str


def read_shard(path: Path) -> Stored | None:
    """What a shard holds; None when it is missing or is not what was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular(path):
            pass
        with safe_open(path, framework="numpy") as file:
            inputs, targets = file.get_tensor("inputs"), file.get_tensor("targets")
            digest = (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None
    return Stored(inputs, targets, digest) if digest == content_digest(inputs, targets) else None


def write_shard(path: Path, inputs: np.ndarray, targets: np.ndarray) -> None:
    """The file holds the shard, whole: safetensors, written from the memory of the arrays."""
    header: dict[str, Any] = {"__metadata__": {"digest": content_digest(inputs, targets)}}
    pieces, end = [], 0
    for name, array in (("targets", targets), ("inputs", inputs)):  # the larger numbers first, so that all are aligned
        start, end = end, end + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype.name], "shape": array.shape, "data_offsets": [start, end]}
        pieces.append(bytes_of(np.ascontiguousarray(array)))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_atomic(path, [len(text).to_bytes(8, "little"), text, *pieces])


def map_shard(path: Path) -> Stored | None:
    """A shard whose arrays are read from the file when they are used; None when it is missing or cut short.

    Nothing is verified: `is_whole` does that.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        inputs, targets = (_map(path, 8 + length, header[name]) for name in ("inputs", "targets"))
        return Stored(inputs, targets, header["__metadata__"]["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _map(path: Path, start: int, entry: Any) -> np.ndarray:
    shape, kind = tuple(entry["shape"]), TYPES[entry["dtype"]]
    if not math.prod(shape):
        return np.empty(shape, kind)
    first, last = entry["data_offsets"]
    if last - first != math.prod(shape) * np.dtype(kind).itemsize:
        raise ValueError("shape and size differ")
    return np.memmap(path, kind, mode="r", offset=start + first, shape=shape)


def is_whole(stored: Stored) -> bool:
    """True when the content is what was written; reads all of it once, without keeping it in memory."""
    return stored.digest == content_digest(stored.inputs, stored.targets)
