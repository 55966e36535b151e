"""The store of checkpoints: what is published is whole, what is loaded is verified. It knows no trainer.

    checkpoints/step-000000012345.00017.1b2c3d4e/   step, serial number in the run, attempt
        model.safetensors ...                       one file a group of tensors
        moving-00001-of-00004.safetensors ...       where the ranks share the tensors: one file a rank
        state.json                                  everything that is not a tensor
        manifest.json                               written last: size and BLAKE2b of each file, and of itself
    checkpoints/.tmp-*                              a save that was cut off; its attempt's successor removes it
    checkpoints/corrupt-*                           did not verify; set aside, never used, never removed here

Publishing: every file is synced, then the manifest, then the folder; then one ``rename`` makes it visible, and the
parent is synced. Nothing is overwritten and there is no pointer to the newest: the newest is the highest step, then
the highest serial, whose digests verify. Nothing is pickled.

Where each rank holds a part of the tensors, all write into one folder, and rank 0 publishes when it has the digests of
all. The files are in the sharded format of torch.distributed.checkpoint's safetensors reader.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from workflow_lib import tensorfile
from workflow_lib.errors import (
    NOT_OF_THE_FILE,
    CheckpointError,
    RankError,
    SaveError,
    UnreadableError,
    WorkspaceBusy,
)
from workflow_lib.files import compact_json, fsync_dir, names_in, open_regular
from workflow_lib.runtime.ranks import Peers

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

VERSION = 1
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MANIFEST = "manifest.json"
STATE = "state.json"
CHUNK = 8 << 20
SHARD = re.compile(r"(?P<group>\w+)-(?P<rank>\d{5})-of-(?P<world>\d{5})")
T = TypeVar("T")
NAME = re.compile(r"step-(?P<step>\d{12})\.(?P<serial>\d{5,})\.(?P<attempt>[0-9a-f]{8})")


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


class CheckpointStore:
    """The checkpoints of one workspace, as one attempt may add to them."""

    def __init__(
        self,
        directory: Path,
        *,
        fingerprint: Mapping[str, Any],
        attempt: str,
        may_publish: Callable[[], bool],
        keep_last: int = 2,
        keep_every_h: float | None = None,
        peers: Peers | None = None,
    ) -> None:
        self.directory = directory
        self.fingerprint = dict(fingerprint)
        self._attempt = attempt
        self._may_publish = may_publish
        self._keep_last = keep_last
        self._keep_every_h = keep_every_h
        self._parent: Checkpoint | None = None
        self._peers = peers or Peers()
        directory.mkdir(parents=True, exist_ok=True)

    def publish(self, snapshot: Snapshot) -> Checkpoint | None:
        """The snapshot is durable under a new name; None on a rank that only wrote its part.

        Raises SaveError when the disk refuses (what was published before is untouched) and WorkspaceBusy when
        another attempt owns the workspace by now.
        """
        if not self._peers.is_main:
            self._contribute(snapshot)
            return None
        serial = self._parent.serial + 1 if self._parent else 0
        name = f"step-{snapshot.step:012d}.{serial:05d}.{self._attempt[:8]}"
        temporary = self.directory / f".tmp-{name}"
        try:
            self._open(temporary)
            manifest = self._write(temporary, snapshot, serial)
            fsync_dir(temporary)
            self.refuse_if_taken_over()
            final = self.directory / name
            _rename(temporary, final)
            self._parent = Checkpoint(final, manifest)
            fsync_dir(self.directory)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError):
                what = f"cannot save a checkpoint of step {snapshot.step} in {self.directory}"
                raise SaveError(f"{what}: {error}") from error
            raise
        self._retain()
        return self._parent

    def load_latest(self) -> tuple[Checkpoint, dict[str, dict[str, torch.Tensor]], dict[str, Any]] | None:
        """Return the newest verified checkpoint with its tensors and state; None if there has never been a checkpoint.

        Each file is read once, each tensor directly into its own memory, and the digest is computed on the bytes that
        are returned, so the host holds one copy of the state. A checkpoint that does not verify is renamed to
        ``corrupt-*`` with a warning. Raises CheckpointError when checkpoints exist but none can be used (a run never
        silently starts again), and UnreadableError when one cannot be read now, but may be whole.
        """
        latest = self._find_latest(_contents)
        if latest is None:
            return None
        checkpoint, (tensors, state) = latest
        return checkpoint, tensors, state

    def find_shared(self) -> Checkpoint | None:
        """The same, on all ranks alike: each reads a part of the files, and what one finds damaged none uses."""
        if not self._peers.is_main:
            newest = None
            while (found := self._peers.announce(None)) is not None:
                newest = Checkpoint(self.directory / found["name"], found["manifest"])
                self._peers.collect(self._damage(newest))
            return newest if self._peers.announce(None) else None
        try:
            latest = self._find_latest(self._verify_together)
        finally:
            self._peers.announce(None)
        self._peers.announce(latest is not None)
        return latest and latest[0]

    def is_alone(self) -> bool:
        """Whether the newest checkpoint is the only one, though more are to be kept."""
        return self._keep_last > 1 and len(published(self.directory)) == 1

    def remove_leftovers(self) -> None:
        """Cut-off saves and removals of earlier attempts are gone. Raises WorkspaceBusy for all but the owner."""
        self.refuse_if_taken_over()
        for pattern in (".tmp-*", ".trash-*"):
            for path in self.directory.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def _find_latest(self, check: Callable[[Checkpoint], T]) -> tuple[Checkpoint, T] | None:
        """The newest checkpoint that passes, and what the check gave; the check raises CheckpointError."""
        unusable = {path.name for path in self.directory.glob("corrupt-*")}
        for path in reversed(published(self.directory)):
            try:
                checkpoint = read_manifest(path)
                self._check_fingerprint(checkpoint)
                found = check(checkpoint)
            except UnreadableError:
                raise
            except CheckpointError as error:
                unusable.add(self._set_aside(path, error).name)
                continue
            self._parent = checkpoint
            return checkpoint, found
        if unusable:
            names = ", ".join(sorted(unusable))
            raise CheckpointError(
                f"none of the checkpoints in {self.directory} can be used ({names}). Put an intact copy back under its "
                f"name, or remove the corrupt-* folders to start this run again from step 0"
            )
        return None

    def _verify_together(self, checkpoint: Checkpoint) -> None:
        self._peers.announce({"name": checkpoint.path.name, "manifest": dict(checkpoint.manifest)})
        for rank, damage in enumerate(self._peers.collect(self._damage(checkpoint))):
            if damage is not None:
                verify(checkpoint)  # what only another rank cannot read is no reason to set it aside
                raise RankError(f"rank {rank} says of {checkpoint.path}: {damage}; rank 0 can: is this disk shared?")

    def _damage(self, checkpoint: Checkpoint) -> str | None:
        """What is wrong with the files that fall to this rank."""
        try:
            for number, (name, entry) in enumerate(_files(checkpoint)):
                if number % self._peers.world_size == self._peers.rank:
                    _check(checkpoint.path / name, entry)
        except CheckpointError as error:
            return str(error)
        return None

    def _open(self, temporary: Path) -> None:
        """The folder is there, and the other ranks know it, or that there is none."""
        announced = None
        try:
            self.refuse_if_taken_over()  # spares the work; what counts is that it is asked again before the rename
            temporary.mkdir()
            announced = temporary.name
        finally:
            self._peers.announce(announced)

    def _contribute(self, snapshot: Snapshot) -> None:
        """This rank's files are durable in the folder of rank 0, which knows their digests, or why not."""
        name = self._peers.announce(None)
        if name is not None:
            self._peers.collect(_write_groups(self.directory / name, snapshot))

    def _write_all(self, directory: Path, snapshot: Snapshot) -> dict[str, Any]:
        """Sizes and digests of the files of all ranks, which are durable."""
        files: dict[str, Any] = {}
        for rank, written in enumerate(self._peers.collect(_write_groups(directory, snapshot))):
            if isinstance(written, str):
                raise OSError(written)
            for name, entry in written.items():
                if rank and (directory / name).stat().st_size != entry["bytes"]:
                    raise OSError(f"{name}, which rank {rank} wrote, is not the same here: is this disk shared?")
            files.update(written)
        files[STATE] = _write_synced(directory / STATE, [compact_json(snapshot.state)])
        return files

    def _write(self, directory: Path, snapshot: Snapshot, serial: int) -> dict[str, Any]:
        manifest: dict[str, Any] = {
            "version": VERSION,
            "step": snapshot.step,
            "serial": serial,
            "attempt": self._attempt,
            "parent": self._parent.path.name if self._parent else None,
            "fingerprint": self.fingerprint,
            "about": dict(snapshot.about),
            "created": time.time(),
            "files": self._write_all(directory, snapshot),
        }
        manifest["digest"] = digest(compact_json(manifest))
        _write_synced(directory / MANIFEST, [compact_json(manifest)])
        return manifest

    def refuse_if_taken_over(self) -> None:
        """Raises WorkspaceBusy when another attempt owns the workspace by now."""
        if not self._may_publish():
            raise WorkspaceBusy(
                f"attempt {self._attempt[:8]} no longer owns {self.directory.parent}: another attempt took over. "
                f"Its work goes on there; nothing was published here"
            )

    def _check_fingerprint(self, checkpoint: Checkpoint) -> None:
        theirs = checkpoint.manifest["fingerprint"]
        for key in sorted(self.fingerprint.keys() | theirs.keys()):
            if self.fingerprint.get(key) != theirs.get(key):
                mine = self.fingerprint.get(key)
                raise CheckpointError(f"belongs to another run: its {key} is {theirs.get(key)!r}, not {mine!r}")

    def _set_aside(self, path: Path, error: CheckpointError) -> Path:
        """Where the checkpoint lies now; it stays where it is if the disk refuses."""
        logger.warning("checkpoint %s is not used: %s; set aside as corrupt-%s", path.name, error, path.name)
        try:
            return path.rename(path.with_name(f"corrupt-{path.name}"))
        except OSError as refused:
            logger.warning("cannot rename %s: %s", path, refused)
            return path

    def _retain(self) -> None:
        """The last ``keep_last`` remain, and one for every ``keep_every_h`` hours; the others are removed."""
        paths = published(self.directory)
        kept = set(paths[-self._keep_last :])
        if self._keep_every_h is not None:
            kept |= _first_of_each_period([path for path in paths if path not in kept], self._keep_every_h * 3600)
        for path in paths:
            if path not in kept:
                trash = path.with_name(f".trash-{path.name}")
                try:
                    os.rename(path, trash)
                    shutil.rmtree(trash)
                except OSError as error:
                    logger.warning("cannot remove the old checkpoint %s: %s", path.name, error)


def _rename(source: Path, target: Path) -> None:
    """The target, which did not exist, is what the source was."""
    try:
        os.rename(source, target)
    except OSError:
        if source.exists() or not target.exists():  # else a network file system has asked twice
            raise


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
        raise _unreadable(path / MANIFEST, error) from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{MANIFEST} is damaged: {error!r}") from error
    return Checkpoint(path, manifest)


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error for a file that the system does not read."""
    if error.errno in NOT_OF_THE_FILE:
        return UnreadableError(f"{path} cannot be read now ({error.strerror}); it may be whole, and stays where it is")
    return CheckpointError(f"cannot read {path.name}: {error.strerror}")


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
    for name, entry in _files(checkpoint):
        _check(checkpoint.path / name, entry)


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
    return tensorfile.joined(group, (_read_verified(checkpoint.path / shard, files[shard]) for shard in shards))


def _contents(checkpoint: Checkpoint) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Return the verified tensors of each group, and the verified state."""
    state = read_state(checkpoint)
    groups = [Path(name).stem for name, _ in _files(checkpoint) if name != STATE]
    return {group: read_tensors(checkpoint, group) for group in groups}, state


def _files(checkpoint: Checkpoint) -> Iterable[tuple[str, Mapping[str, Any]]]:
    return sorted(checkpoint.manifest["files"].items())


def _read_verified(path: Path, entry: Mapping[str, Any]) -> bytes:
    try:
        with open_regular(path) as file:
            _check_size(path, file, entry)
            data = file.read()
    except OSError as error:
        raise _unreadable(path, error) from error
    if digest(data) != entry["blake2b"]:
        raise CheckpointError(f"{path.name} is damaged: its digest differs")
    return data


def _read_tensors(path: Path, entry: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, verified by the digest of the entry, without a second copy in memory."""
    try:
        with open_regular(path) as file:
            _check_size(path, file, entry)
            hashed = _Hashed(file)
            tensors = tensorfile.read(hashed, entry["bytes"])
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        _check(path, entry)  # a damaged header is reported as damage, too
        raise CheckpointError(f"{path.name} is not a tensor file: {error}") from error
    if hashed.digest() != entry["blake2b"]:
        raise CheckpointError(f"{path.name} is damaged: its digest differs")
    return tensors


class _Hashed:
    """A file that computes the digest of the bytes read from it."""

    def __init__(self, file: io.FileIO) -> None:
        self._file, self._hasher = file, hashlib.blake2b(digest_size=32)

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


def _check(path: Path, entry: Mapping[str, Any]) -> None:
    """Returns when the file has the size and the digest; it is never in memory as a whole."""
    hasher = hashlib.blake2b(digest_size=32)
    try:
        with open_regular(path) as file:
            _check_size(path, file, entry)
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
    except OSError as error:
        raise _unreadable(path, error) from error
    if hasher.hexdigest() != entry["blake2b"]:
        raise CheckpointError(f"{path.name} is damaged: its digest differs")


def _write_groups(directory: Path, snapshot: Snapshot) -> dict[str, Any] | str:
    """Write a durable file per group; return sizes and digests, or the error text, since rank 0 waits for it."""
    try:
        return {
            f"{group}.safetensors": _write_synced(
                directory / f"{group}.safetensors", tensorfile.written(group, tensors, snapshot.offsets.get(group))
            )
            for group, tensors in sorted(snapshot.tensors.items())
        }
    except Exception as error:
        return str(error) or repr(error)


def _write_synced(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
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


def digest(data: bytes) -> str:
    """BLAKE2b of the bytes, as manifests have it."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def _first_of_each_period(paths: list[Path], period_s: float) -> set[Path]:
    """The first checkpoint of each period of the clock; one whose manifest cannot be read is kept for the loader."""
    kept: dict[int, Path] = {}
    unreadable = set()
    for path in paths:
        try:
            kept.setdefault(int(read_manifest(path).manifest["created"] // period_s), path)
        except CheckpointError:
            unreadable.add(path)
    return set(kept.values()) | unreadable
