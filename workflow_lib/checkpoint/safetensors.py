"""The safetensors format, written and read without a second copy of the tensors; parts written by ranks are joined.

The library's own writer and reader need a second copy of every byte in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from workflow_lib.errors import SaveError
from workflow_lib.files import compact_json

if TYPE_CHECKING:
    import torch

SHARDING_INFO = "DCP_SHARDING_INFO"  # where torch's reader of sharded safetensors finds the places of the parts

# names of the dtypes in the format
DTYPES = {
    "torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16",
    "torch.int64": "I64", "torch.int32": "I32", "torch.int16": "I16", "torch.int8": "I8",
    "torch.uint64": "U64", "torch.uint32": "U32", "torch.uint16": "U16", "torch.uint8": "U8", "torch.bool": "BOOL",
}  # fmt: skip
NAMES = {short: name.removeprefix("torch.") for name, short in DTYPES.items()}


class Source(Protocol):
    """A file that is read sequentially."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer, or as much of it as the file still has; return the number of bytes."""


def written(
    group: str, tensors: Mapping[str, torch.Tensor], offsets: Mapping[str, list[int]] | None = None
) -> Iterator[bytes | memoryview]:
    """The file of the tensors, as pieces that share their memory; equal tensors give equal bytes.

    With offsets it is a shard: each tensor is a part that begins there in the whole one. Raises SaveError, with the
    group's name, for a dtype that the format does not have.
    """
    entries: dict[str, tuple[dict[str, Any], list[memoryview]]] = {}
    for name in sorted(tensors):
        dtype = DTYPES.get(str(tensors[name].dtype))
        if dtype is None:
            raise SaveError(f"{group}: {name} is {tensors[name].dtype}, which a checkpoint cannot hold")
        entries[name] = {"dtype": dtype, "shape": list(tensors[name].shape)}, [bytes_of(tensors[name])]
    return _file(entries, offsets)


def read(file: Source, size: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a file of ``size`` bytes by name, on the CPU, each in its own memory.

    Raises ValueError if the header does not match the file. Never allocates more than ``size`` bytes for tensors,
    whatever the header says.
    """
    import torch

    try:
        length = int.from_bytes(_exactly(file, 8, size), "little")
        header = json.loads(_exactly(file, length, size - 8))
        header.pop("__metadata__", None)
        end, left, tensors = 0, size - 8 - length, {}
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


def joined(group: str, shards: Iterable[bytes]) -> bytes | None:
    """One file of the group's tensors, whose parts lie in the shards as ``group.name``; None where none does."""
    parts: dict[str, list[tuple[list[int], dict[str, Any], memoryview]]] = {}
    for shard in shards:
        for key, offsets, entry, piece in _parts(shard):
            if key.startswith(f"{group}."):
                parts.setdefault(key.removeprefix(f"{group}."), []).append((offsets, entry, piece))
    return b"".join(_file({key: _joined(parts[key]) for key in sorted(parts)})) if parts else None


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, in the order of its elements; shared where it is contiguous."""
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


def _file(
    entries: Mapping[str, tuple[dict[str, Any], list[memoryview]]], offsets: Mapping[str, list[int]] | None = None
) -> Iterator[bytes | memoryview]:
    """A file of entries (dtype, shape) and their bytes, in that order."""
    header: dict[str, Any] = {}
    end = 0
    for name, (entry, pieces) in entries.items():
        start, end = end, end + sum(map(len, pieces))
        header[name] = {**entry, "data_offsets": [start, end]}
    if offsets is not None:
        places = {name: {"saved_offsets": place} for name, place in offsets.items()}
        header["__metadata__"] = {SHARDING_INFO: compact_json(places).decode()}
    text = compact_json(header)
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, pieces in entries.values():
        yield from pieces


def _parts(data: bytes) -> Iterator[tuple[str, list[int], dict[str, Any], memoryview]]:
    """Of each part in a shard: name, place in the whole tensor, dtype and shape, bytes."""
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    places = json.loads(header.pop("__metadata__")[SHARDING_INFO])
    for name, entry in header.items():
        start, end = entry.pop("data_offsets")
        yield name, places[name]["saved_offsets"], entry, memoryview(data)[begin + start : begin + end]


def _joined(parts: list[tuple[list[int], dict[str, Any], memoryview]]) -> tuple[dict[str, Any], list[memoryview]]:
    """Dtype and shape, and the bytes, of a tensor that is cut along its first dimension, or not at all."""
    parts.sort(key=lambda part: part[0])
    entry = dict(parts[0][1])
    if len(parts) > 1:
        entry["shape"] = [sum(part[1]["shape"][0] for part in parts), *entry["shape"][1:]]
    return entry, [part[2] for part in parts]
