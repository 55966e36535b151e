"""The safetensors format: its only writer, and a reader of tensors; shards written by several ranks are joined.

A file is the length of its header in 8 bytes, the header in JSON, and the bytes of the tensors. The writer yields the
tensors' own memory, and the reader reads into it: the functions of the safetensors library need a second copy of
every byte.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from workflow_lib.errors import SaveError
from workflow_lib.files import compact_json

if TYPE_CHECKING:
    import torch

SHARDING_INFO = "DCP_SHARDING_INFO"  # the key under which torch's reader of sharded safetensors looks for the offsets

# names of dtypes, which torch and NumPy share, to their names in the format
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
NAMES = {short: name for name, short in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: the format's name of its dtype, its shape, and its bytes in pieces."""

    dtype: str
    shape: list[int]
    pieces: list[memoryview]


class Source(Protocol):
    """A file that is read sequentially."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the buffer, or as much of it as the file still has; return the number of bytes."""


def encode(
    group: str, tensors: Mapping[str, torch.Tensor], offsets: Mapping[str, list[int]] | None = None
) -> Iterator[bytes | memoryview]:
    """Yield the pieces of a file of CPU tensors, sorted by name; equal tensors give equal bytes.

    With ``offsets`` the file is a shard: each tensor is the part of a larger tensor that begins at its offset. Raises
    SaveError, with the name of the group, for a dtype that the format does not have.
    """
    entries = {}
    for name in sorted(tensors):
        dtype = DTYPES.get(str(tensors[name].dtype).removeprefix("torch."))
        if dtype is None:
            raise SaveError(f"{group}: {name} is {tensors[name].dtype}, which a checkpoint cannot hold")
        entries[name] = Entry(dtype, list(tensors[name].shape), [bytes_of(tensors[name])])
    header = header_of(entries)
    if offsets is not None:
        saved = {name: {"saved_offsets": offset} for name, offset in offsets.items()}
        header["__metadata__"] = {SHARDING_INFO: compact_json(saved).decode()}
    return pieces_of(compact_json(header), entries)


def header_of(entries: Mapping[str, Entry]) -> dict[str, Any]:
    """Return the header of a file that holds the tensors in the order of the mapping, without gaps."""
    header: dict[str, Any] = {}
    end = 0
    for name, entry in entries.items():
        start, end = end, end + sum(map(len, entry.pieces))
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]}
    return header


def pieces_of(header: bytes, entries: Mapping[str, Entry]) -> Iterator[bytes | memoryview]:
    """Yield the pieces of a file, given its header in JSON."""
    header += b" " * (-len(header) % 8)  # aligns the first tensor in a mapped file
    yield len(header).to_bytes(8, "little") + header
    for entry in entries.values():
        yield from entry.pieces


def read_header(file: Source, size: int) -> tuple[dict[str, Any], int]:
    """Return the header of a file of ``size`` bytes, and the place of the first tensor's bytes.

    Raises ValueError if the file is too short or the header is not JSON.
    """
    length = int.from_bytes(_exactly(file, 8, size), "little")
    header: dict[str, Any] = json.loads(_exactly(file, length, size - 8))
    return header, 8 + length


def read(file: Source, size: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a file of ``size`` bytes by name, on the CPU, each in its own memory.

    Raises ValueError if the header does not match the file. Never allocates more than ``size`` bytes for tensors,
    whatever the header says.
    """
    import torch

    try:
        header, begin = read_header(file, size)
        header.pop("__metadata__", None)
        end, left, tensors = 0, size - begin, {}
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape = getattr(torch, NAMES[entry["dtype"]]), entry["shape"]
            start, stop = entry["data_offsets"]
            if min(shape, default=0) < 0 or stop - start != math.prod(shape) * dtype.itemsize or start != end:
                raise ValueError(f"the header has no place for {name}")
            if stop > left:
                raise ValueError(f"the file ends before {name} does")
            tensors[name] = torch.empty(shape, dtype=dtype)
            if file.readinto(bytes_of(tensors[name])) != stop - start:
                raise ValueError(f"the file ended while {name} was read")
            end = stop
    except (KeyError, TypeError, AttributeError, RecursionError, RuntimeError, OverflowError) as error:
        raise ValueError(f"the header is damaged: {error!r}") from error
    if end != left:
        raise ValueError(f"{left - end} bytes belong to no tensor")
    return tensors


def join_shards(group: str, shards: Iterable[bytes]) -> bytes | None:
    """Return one file of the group's tensors, which the shards name ``group.name``; None if no shard has any."""
    parts: dict[str, list[tuple[list[int], Entry]]] = {}
    for shard in shards:
        for key, offset, entry in _parts(shard):
            if key.startswith(f"{group}."):
                parts.setdefault(key.removeprefix(f"{group}."), []).append((offset, entry))
    entries = {key: _joined(parts[key]) for key in sorted(parts)}
    return b"".join(pieces_of(compact_json(header_of(entries)), entries)) if entries else None


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a CPU tensor in the order of its elements; they share its memory if it is contiguous."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _exactly(file: Source, count: int, most: int) -> bytes:
    """Return the next ``count`` bytes of the file; raise ValueError if there are fewer, or they exceed ``most``."""
    if count > most:
        raise ValueError("the header is longer than the file")
    buffer = bytearray(count)
    if file.readinto(memoryview(buffer)) != count:
        raise ValueError("the file ends in its header")
    return bytes(buffer)


def _parts(shard: bytes) -> Iterator[tuple[str, list[int], Entry]]:
    """Yield the name of each tensor in a shard, its offset in the whole tensor, and its entry."""
    header, begin = read_header(io.BytesIO(shard), len(shard))
    saved = json.loads(header.pop("__metadata__")[SHARDING_INFO])
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        piece = memoryview(shard)[begin + start : begin + end]
        yield name, saved[name]["saved_offsets"], Entry(entry["dtype"], entry["shape"], [piece])


def _joined(parts: list[tuple[list[int], Entry]]) -> Entry:
    """Return the whole tensor, which is cut along its first dimension, or not at all."""
    entries = [entry for _, entry in sorted(parts, key=lambda part: part[0])]
    shape = entries[0].shape
    if len(entries) > 1:
        shape = [sum(entry.shape[0] for entry in entries), *shape[1:]]
    return Entry(entries[0].dtype, shape, [piece for entry in entries for piece in entry.pieces])
