"""Arrays in a safetensors file, with the digest of their content; they are mapped into memory, not read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workflow_lib.checkpoint import safetensors
from workflow_lib.data.source import bytes_of
from workflow_lib.files import open_regular, write_atomic


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], digest: str) -> None:
    """Write the arrays, in this order, atomically and without copying them."""
    entries = {name: _entry(array) for name, array in arrays.items()}
    header = {"__metadata__": {"digest": digest}, **safetensors.header_of(entries)}
    write_atomic(path, [*safetensors.pieces_of(json.dumps(header, separators=(",", ":")).encode(), entries)])


def _entry(array: np.ndarray) -> safetensors.Entry:
    dtype = safetensors.DTYPES[array.dtype.name]
    return safetensors.Entry(dtype, list(array.shape), [bytes_of(np.ascontiguousarray(array))])


def map_arrays(path: Path) -> tuple[dict[str, np.ndarray], str] | None:
    """Return the arrays by name, mapped, and the digest that the file gives; None if it is missing or truncated.

    The content is not verified.
    """
    try:
        with open_regular(path) as file:
            header, begin = safetensors.read_header(file, os.fstat(file.fileno()).st_size)
        digest = header.pop("__metadata__")["digest"]
        return {name: _map(path, begin, entry) for name, entry in header.items()}, digest
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
