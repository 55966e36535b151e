"""A published checkpoint: its manifest, and how it is read and verified."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib.checkpoint import safetensors
from workflow_lib.errors import NOT_DAMAGE, CheckpointError, UnreadableError
from workflow_lib.files import blake2b, compact_json, names_in, open_regular

if TYPE_CHECKING:
    import torch

VERSION = 1


FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


MANIFEST = "manifest.json"


STATE = "state.json"


CHUNK = 8 << 20


SHARD = re.compile(r"(?P<group>\w+)-(?P<rank>\d{5})-of-(?P<world>\d{5})")


NAME = re.compile(r"step-(?P<step>\d{12})\.(?P<serial>\d{5,})\.(?P<attempt>[0-9a-f]{8})")


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint, by its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.manifest["step"])

    @property
    def serial(self) -> int:
        """Its place in the sequence of the run's saves, over all attempts."""
        return int(self.manifest["serial"])

    @property
    def about(self) -> Mapping[str, Any]:
        """What the trainer says of it: cursor, world size, environment."""
        about: Mapping[str, Any] = self.manifest["about"]
        return about


def published(directory: Path) -> list[Path]:
    """The checkpoints of a workspace, oldest first, verified or not."""
    found = [match for name in names_in(directory) if (match := NAME.fullmatch(name))]
    found.sort(key=lambda match: (int(match["step"]), int(match["serial"]), match["attempt"]))
    return [directory / match[0] for match in found]


def read_manifest(path: Path) -> Checkpoint:
    """The checkpoint at the path, if its manifest is intact; its files are not read. Raises CheckpointError."""
    try:
        with open_regular(path / MANIFEST) as file:
            manifest = json.loads(file.read())
        said = manifest.pop("digest")
        if digest(compact_json(manifest)) != said:
            raise CheckpointError(f"{MANIFEST} is damaged: its digest differs")
        if manifest["version"] != VERSION:
            raise CheckpointError(f"{MANIFEST} has format {manifest['version']}; this version reads {VERSION}")
        match = NAME.fullmatch(path.name)
        if match is None or (int(match["step"]), int(match["serial"])) != (
            manifest["step"],
            manifest["serial"],
        ):
            raise CheckpointError(f"{MANIFEST} says step {manifest['step']}, serial {manifest['serial']}")
        _check_names(manifest["files"])
    except OSError as error:
        raise unreadable(path / MANIFEST, error) from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{MANIFEST} is damaged: {error!r}") from error
    return Checkpoint(path, manifest)


def _check_names(files: Mapping[str, Any]) -> None:
    """Every file lies in the checkpoint's own folder, and has a size and a digest. Raises CheckpointError."""
    for name, entry in files.items():
        if not FILE_NAME.fullmatch(name):
            raise CheckpointError(f"{MANIFEST} names {name!r}; allowed: files in its own folder")
        if not isinstance(entry["bytes"], int) or not isinstance(entry["blake2b"], str):
            raise CheckpointError(f"{MANIFEST} is damaged: {name} has no size and digest")


def read_newest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint whose manifest is intact, without a look at its files; None if there is none."""
    for path in reversed(published(directory)):
        try:
            return read_manifest(path)
        except CheckpointError:
            continue
    return None


def verify(checkpoint: Checkpoint) -> None:
    """Returns when every file has the size and the digest of the manifest; raises CheckpointError."""
    for name, entry in files_of(checkpoint):
        check_file(checkpoint.path / name, entry)


def read_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state beside the tensors, verified."""
    state: dict[str, Any] = json.loads(_read_verified(checkpoint.path / STATE, checkpoint.manifest["files"][STATE]))
    return state


def read_tensors(checkpoint: Checkpoint, group: str) -> dict[str, torch.Tensor]:
    """The tensors of a group that one file holds, verified."""
    name = f"{group}.safetensors"
    return _read_tensors(checkpoint.path / name, checkpoint.manifest["files"][name])


def whole(checkpoint: Checkpoint, group: str) -> bytes | None:
    """The safetensors file of a group, put together where the ranks shared it; None where there is none."""
    name = f"{group}.safetensors"
    files = checkpoint.manifest["files"]
    if name in files:
        return _read_verified(checkpoint.path / name, files[name])
    shards = [name for name in sorted(files) if SHARD.fullmatch(Path(name).stem)]
    return safetensors.join_shards(group, (_read_verified(checkpoint.path / shard, files[shard]) for shard in shards))


def files_of(checkpoint: Checkpoint) -> Iterable[tuple[str, Mapping[str, Any]]]:
    return sorted(checkpoint.manifest["files"].items())


def _read_verified(path: Path, entry: Mapping[str, Any]) -> bytes:
    try:
        with open_regular(path) as file:
            _check_size(path, file, entry)
            data = file.read()
    except OSError as error:
        raise unreadable(path, error) from error
    if digest(data) != entry["blake2b"]:
        raise CheckpointError(f"{path.name} is damaged: its digest differs")
    return data


def _read_tensors(path: Path, entry: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, verified by the digest of the entry, without a second copy in memory."""
    try:
        with open_regular(path) as file:
            _check_size(path, file, entry)
            hashed = _Hashed(file)
            tensors = safetensors.read(hashed, entry["bytes"])
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        check_file(path, entry)  # a damaged header is reported as damage, too
        raise CheckpointError(f"{path.name} is not a tensor file: {error}") from error
    if hashed.digest() != entry["blake2b"]:
        raise CheckpointError(f"{path.name} is damaged: its digest differs")
    return tensors


class _Hashed:
    """A file that computes the digest of the bytes read from it."""

    def __init__(self, file: io.FileIO) -> None:
        self._file, self._hasher = file, blake2b(size=32)

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer, or as much of it as the file still has; return the number of bytes."""
        size = 0
        while size < len(buffer):
            piece = buffer[size : size + CHUNK]  # small enough to be hashed while it is in the CPU cache
            count = self._file.readinto(piece)
            if not count:
                break
            self._hasher.update(piece[:count])
            size += count
        return size

    def digest(self) -> str:
        """BLAKE2b of all bytes that were read."""
        return self._hasher.hexdigest()


def _check_size(path: Path, file: io.FileIO, entry: Mapping[str, Any]) -> None:
    size = os.fstat(file.fileno()).st_size
    if size != entry["bytes"]:
        raise CheckpointError(f"{path.name} has {size} bytes instead of {entry['bytes']}")


def check_file(path: Path, entry: Mapping[str, Any]) -> None:
    """Returns when the file has the size and the digest; it is never in memory as a whole."""
    hasher = blake2b(size=32)
    try:
        with open_regular(path) as file:
            _check_size(path, file, entry)
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
    except OSError as error:
        raise unreadable(path, error) from error
    if hasher.hexdigest() != entry["blake2b"]:
        raise CheckpointError(f"{path.name} is damaged: its digest differs")


def digest(data: bytes) -> str:
    """BLAKE2b of the bytes, as manifests have it."""
    return blake2b(data, size=32).hexdigest()


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error for a file that the system does not read."""
    if error.errno in NOT_DAMAGE:
        return UnreadableError(f"{path} cannot be read now ({error.strerror}); it may be whole, and stays where it is")
    return CheckpointError(f"cannot read {path.name}: {error.strerror}")
