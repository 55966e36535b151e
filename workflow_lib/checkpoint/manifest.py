"""Published checkpoints: their manifests, and verified reads of their files."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from workflow_lib.checkpoint import safetensors
from workflow_lib.errors import NOT_DAMAGE, CheckpointError, UnreadableError
from workflow_lib.files import blake2b, compact_json, names_in, open_regular

if TYPE_CHECKING:
    import torch

# the digest of files in each format; BLAKE3 needs a fifth of the time of BLAKE2b on a CPU with AVX-512
ALGORITHMS = {1: "blake2b", 2: "blake3"}
VERSION = 2
MANIFEST = "manifest.json"
STATE = "state.json"
# Bytes that are hashed, read or written at a time. They stay in the CPU's cache between the two. For writes of several
# MiB Linux looks for large free blocks of memory, which took up to ten times as long as the copy.
CHUNK = 512 << 10

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SHARD = re.compile(r"(?P<group>\w+)-(?P<rank>\d{5})-of-(?P<world>\d{5})")
NAME = re.compile(r"step-(?P<step>\d{12})\.(?P<serial>\d{5,})\.(?P<attempt>[0-9a-f]{8})")


class Hasher(Protocol):
    """A hash object."""

    def update(self, content: bytes | memoryview, /) -> object:
        """Append the content."""

    def hexdigest(self) -> str:
        """Return the digest of everything that was appended."""


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint and its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.manifest["step"])

    @property
    def serial(self) -> int:
        """Number of the save in the run, from 0, over all attempts."""
        return int(self.manifest["serial"])

    @property
    def about(self) -> Mapping[str, Any]:
        """Values that the trainer adds: cursor, exactness, number of parameters, environment."""
        about: Mapping[str, Any] = self.manifest["about"]
        return about


def published(directory: Path) -> list[Path]:
    """Return the paths of all checkpoints of a workspace, oldest first. Nothing is verified."""
    found = [match for name in names_in(directory) if (match := NAME.fullmatch(name))]
    found.sort(key=lambda match: (int(match["step"]), int(match["serial"]), match["attempt"]))
    return [directory / match[0] for match in found]


def read_manifest(path: Path) -> Checkpoint:
    """Return the checkpoint at the path; only its manifest is read. Raises CheckpointError if that is damaged."""
    try:
        with open_regular(path / MANIFEST) as file:
            manifest = json.loads(file.read())
        expected = manifest.pop("digest")
        if digest(compact_json(manifest)) != expected:
            raise CheckpointError(f"{MANIFEST} is damaged: its digest differs")
        algorithm = _algorithm(path, manifest["version"])
        match = NAME.fullmatch(path.name)
        if match is None or (int(match["step"]), int(match["serial"])) != (
            manifest["step"],
            manifest["serial"],
        ):
            # the manifest belongs to another folder
            raise CheckpointError(f"{MANIFEST} says step {manifest['step']}, serial {manifest['serial']}")
        _check_files(manifest["files"], algorithm)
    except OSError as error:
        raise unreadable(path / MANIFEST, error) from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{MANIFEST} is damaged: {error!r}") from error
    return Checkpoint(path, manifest)


def _algorithm(path: Path, version: int) -> str:
    """Return the name of the digest of files in this format.

    Raises UnreadableError for a format of a later version: the checkpoint may be intact.
    """
    if version > VERSION:
        raise UnreadableError(
            f"{path} has format {version}, of a later version of Everstep; this one reads formats up to {VERSION}. "
            f"The checkpoint stays where it is: continue the run with the later version"
        )
    return ALGORITHMS[version]


def _check_files(files: Mapping[str, Any], algorithm: str) -> None:
    """Raise CheckpointError unless every file is in the checkpoint's own folder and has a size and a digest."""
    for name, entry in files.items():
        if not FILE_NAME.fullmatch(name):
            raise CheckpointError(f"{MANIFEST} names {name!r}; allowed: files in its own folder")
        if not isinstance(entry["bytes"], int) or not isinstance(entry[algorithm], str):
            raise CheckpointError(f"{MANIFEST} is damaged: {name} has no size and digest")


def read_newest(directory: Path) -> Checkpoint | None:
    """Return the newest checkpoint whose manifest is intact, or None. Its other files are not read."""
    for path in reversed(published(directory)):
        try:
            return read_manifest(path)
        except CheckpointError:
            continue
    return None


def verify(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError unless every file has the size and the digest of the manifest."""
    for name, entry in files_of(checkpoint):
        check_file(checkpoint.path / name, entry)


def read_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the state besides tensors, verified."""
    state: dict[str, Any] = json.loads(_read_verified(checkpoint.path / STATE, checkpoint.manifest["files"][STATE]))
    return state


def read_tensors(checkpoint: Checkpoint, group: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a group that is in one file, verified."""
    name = f"{group}.safetensors"
    return _read_tensors(checkpoint.path / name, checkpoint.manifest["files"][name])


def read_group_file(checkpoint: Checkpoint, group: str) -> bytes | None:
    """Return the safetensors file of a group, joined if several ranks wrote it; None if there is no such group."""
    name = f"{group}.safetensors"
    files = checkpoint.manifest["files"]
    if name in files:
        return _read_verified(checkpoint.path / name, files[name])
    shards = [name for name in sorted(files) if SHARD.fullmatch(Path(name).stem)]
    return safetensors.join_shards(group, (_read_verified(checkpoint.path / shard, files[shard]) for shard in shards))


def files_of(checkpoint: Checkpoint) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Return the name of each file with its size and digest, in the order of names."""
    return sorted(checkpoint.manifest["files"].items())


def _read_verified(path: Path, entry: Mapping[str, Any]) -> bytes:
    try:
        with open_regular(path) as file:
            _check_size(path, file, entry)
            data = file.read()
    except OSError as error:
        raise unreadable(path, error) from error
    hasher = new_hasher(_algorithm_of(entry))
    hasher.update(data)
    _check_digest(path, hasher, entry)
    return data


def _read_tensors(path: Path, entry: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, verified by the digest in the entry. Reads it once, without a second copy."""
    try:
        with open_regular(path) as file:
            _check_size(path, file, entry)
            hashed = _Hashed(file, new_hasher(_algorithm_of(entry)))
            tensors = safetensors.read(hashed, entry["bytes"])
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        check_file(path, entry)  # if the header is damaged, report the damage and not its effect
        raise CheckpointError(f"{path.name} is not a tensor file: {error}") from error
    _check_digest(path, hashed.hasher, entry)
    return tensors


class _Hashed:
    """A file that computes the digest of the bytes read from it."""

    def __init__(self, file: io.FileIO, hasher: Hasher) -> None:
        self._file, self.hasher = file, hasher

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer, or as much of it as the file still has; return the number of bytes."""
        size = 0
        while size < len(buffer):
            piece = buffer[size : size + CHUNK]
            count = self._file.readinto(piece)
            if not count:
                break
            self.hasher.update(piece[:count])
            size += count
        return size


def _check_size(path: Path, file: io.FileIO, entry: Mapping[str, Any]) -> None:
    size = os.fstat(file.fileno()).st_size
    if size != entry["bytes"]:
        raise CheckpointError(f"{path.name} has {size} bytes instead of {entry['bytes']}")


def check_file(path: Path, entry: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the file has the size and the digest of the entry. Reads it in chunks."""
    hasher, buffer = new_hasher(_algorithm_of(entry)), memoryview(bytearray(CHUNK))
    try:
        with open_regular(path) as file:
            _check_size(path, file, entry)
            while count := file.readinto(buffer):
                hasher.update(buffer[:count])
    except OSError as error:
        raise unreadable(path, error) from error
    _check_digest(path, hasher, entry)


def new_hasher(algorithm: str = ALGORITHMS[VERSION]) -> Hasher:
    """Return a hash object of 256 bits, by default of the current format."""
    if algorithm == "blake2b":
        return blake2b(size=32)
    from blake3 import blake3  # what only looks at manifests, such as the Snakefile, starts without it

    return blake3()


def _algorithm_of(entry: Mapping[str, Any]) -> str:
    return "blake3" if "blake3" in entry else "blake2b"


def _check_digest(path: Path, hasher: Hasher, entry: Mapping[str, Any]) -> None:
    if hasher.hexdigest() != entry[_algorithm_of(entry)]:
        raise CheckpointError(f"{path.name} is damaged: its digest differs")


def digest(data: bytes) -> str:
    """Return the BLAKE2b digest of the bytes, as that of a manifest: 64 hexadecimal digits."""
    return blake2b(data, size=32).hexdigest()


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Return the error for a file that the system cannot read: UnreadableError if the file may be intact."""
    if error.errno in NOT_DAMAGE:
        return UnreadableError(f"{path} cannot be read now ({error.strerror}); it may be intact, and stays where it is")
    return CheckpointError(f"cannot read {path.name}: {error.strerror}")
