"""The store of checkpoints: what is published is whole, what is loaded is verified. It knows no trainer.

    checkpoints/step-000000012345.00017.1b2c3d4e/   step, serial number in the run, attempt
        model.safetensors ...                       one file a group of tensors
        state.json                                  everything that is not a tensor
        manifest.json                               written last: size and BLAKE2b of each file, and of itself
    checkpoints/.tmp-*                              a save that was cut off; its attempt's successor removes it
    checkpoints/corrupt-*                           did not verify; set aside, never used, never removed here

Publishing: every file is synced, then the manifest, then the folder; then one ``rename`` makes it visible, and the
parent is synced. Nothing is overwritten and there is no pointer to the newest: the newest is the highest step, then
the highest serial, whose digests verify. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
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
from typing import TYPE_CHECKING, Any

from workflow_lib.errors import CheckpointError, SaveError, WorkspaceBusy
from workflow_lib.files import fsync_dir

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

VERSION = 1
MANIFEST = "manifest.json"
STATE = "state.json"
CHUNK = 8 << 20
NAME = re.compile(r"step-(?P<step>\d{12})\.(?P<serial>\d{5,})\.(?P<attempt>[0-9a-f]{8})")

# names of the dtypes in the safetensors format
DTYPES = {
    "torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16",
    "torch.int64": "I64", "torch.int32": "I32", "torch.int16": "I16", "torch.int8": "I8",
    "torch.uint64": "U64", "torch.uint32": "U32", "torch.uint16": "U16", "torch.uint8": "U8", "torch.bool": "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """A state to be saved: ``tensors[group][name]`` on the CPU, and JSON for the rest."""

    step: int
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    state: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)


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
    ) -> None:
        self.directory = directory
        self.fingerprint = dict(fingerprint)
        self._attempt = attempt
        self._may_publish = may_publish
        self._keep_last = keep_last
        self._keep_every_h = keep_every_h
        self._parent: Checkpoint | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def publish(self, snapshot: Snapshot) -> Checkpoint:
        """The snapshot is durable under a new name.

        Raises SaveError when the disk refuses (what was published before is untouched) and WorkspaceBusy when
        another attempt owns the workspace by now.
        """
        serial = self._parent.serial + 1 if self._parent else 0
        name = f"step-{snapshot.step:012d}.{serial:05d}.{self._attempt[:8]}"
        temporary = self.directory / f".tmp-{name}"
        try:
            self.refuse_if_taken_over()  # spares the work; what counts is that it is asked again before the rename
            temporary.mkdir()
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
        """The newest checkpoint that verifies, with its tensors and state; None when there has never been one.

        One that does not verify is renamed to ``corrupt-*`` with a warning. Raises CheckpointError when
        checkpoints exist but none can be used: a run never silently starts again.
        """
        unusable = {path.name for path in self.directory.glob("corrupt-*")}
        for path in reversed(published(self.directory)):
            try:
                checkpoint = read_manifest(path)
                self._check_fingerprint(checkpoint)
                contents = {name: _read_verified(path / name, entry) for name, entry in _files(checkpoint)}
            except CheckpointError as error:
                unusable.add(self._set_aside(path, error).name)
                continue
            self._parent = checkpoint
            state = json.loads(contents.pop(STATE))
            return checkpoint, {Path(name).stem: _tensors(data) for name, data in contents.items()}, state
        if unusable:
            names = ", ".join(sorted(unusable))
            raise CheckpointError(
                f"none of the checkpoints in {self.directory} can be used ({names}). Put an intact copy back under its "
                f"name, or remove the corrupt-* folders to start this run again from step 0"
            )
        return None

    def is_alone(self) -> bool:
        """Whether the newest checkpoint is the only one, though more are to be kept."""
        return self._keep_last > 1 and len(published(self.directory)) == 1

    def remove_leftovers(self) -> None:
        """Cut-off saves and removals of earlier attempts are gone. Raises WorkspaceBusy for all but the owner."""
        self.refuse_if_taken_over()
        for pattern in (".tmp-*", ".trash-*"):
            for path in self.directory.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def _write(self, directory: Path, snapshot: Snapshot, serial: int) -> dict[str, Any]:
        files = {f"{group}.safetensors": _serialized(group, tensors) for group, tensors in snapshot.tensors.items()}
        files[STATE] = [_canonical(snapshot.state)]
        manifest: dict[str, Any] = {
            "version": VERSION,
            "step": snapshot.step,
            "serial": serial,
            "attempt": self._attempt,
            "parent": self._parent.path.name if self._parent else None,
            "fingerprint": self.fingerprint,
            "about": dict(snapshot.about),
            "created": time.time(),
            "files": {name: _write_synced(directory / name, chunks) for name, chunks in sorted(files.items())},
        }
        manifest["digest"] = _digest(_canonical(manifest))
        _write_synced(directory / MANIFEST, [_canonical(manifest)])
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
    found = [(match, path) for path in directory.glob("step-*") if (match := NAME.fullmatch(path.name))]
    found.sort(key=lambda pair: (int(pair[0]["step"]), int(pair[0]["serial"]), pair[0]["attempt"]))
    return [path for _, path in found]


def read_manifest(path: Path) -> Checkpoint:
    """The checkpoint at the path, if its manifest is intact; its files are not read. Raises CheckpointError."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        digest = manifest.pop("digest")
        if _digest(_canonical(manifest)) != digest:
            raise CheckpointError(f"{MANIFEST} is damaged: its digest differs")
        if manifest["version"] != VERSION:
            raise CheckpointError(f"{MANIFEST} has format {manifest['version']}; this version reads {VERSION}")
        match = NAME.fullmatch(path.name)
        if match is None or (int(match["step"]), int(match["serial"])) != (
            manifest["step"],
            manifest["serial"],
        ):
            raise CheckpointError(f"{MANIFEST} says step {manifest['step']}, serial {manifest['serial']}")
    except OSError as error:
        raise CheckpointError(f"cannot read {MANIFEST}: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{MANIFEST} is damaged: {error!r}") from error
    return Checkpoint(path, manifest)


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
        _read_verified(checkpoint.path / name, entry)


def read_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state beside the tensors, verified."""
    state: dict[str, Any] = json.loads(_read_verified(checkpoint.path / STATE, checkpoint.manifest["files"][STATE]))
    return state


def _files(checkpoint: Checkpoint) -> Iterable[tuple[str, Mapping[str, Any]]]:
    return sorted(checkpoint.manifest["files"].items())


def _read_verified(path: Path, entry: Mapping[str, Any]) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {error.strerror}") from error
    if len(data) != entry["bytes"]:
        raise CheckpointError(f"{path.name} has {len(data)} bytes instead of {entry['bytes']}")
    if _digest(data) != entry["blake2b"]:
        raise CheckpointError(f"{path.name} is damaged: its digest differs")
    return data


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


def _serialized(group: str, tensors: Mapping[str, torch.Tensor]) -> list[bytes | memoryview]:
    """The safetensors file of the tensors, as pieces that share their memory; equal tensors give equal bytes."""
    header: dict[str, Any] = {}
    pieces: list[memoryview] = []
    offset = 0
    for name in sorted(tensors):
        piece = bytes_of(tensors[name])
        end = offset + len(piece)
        dtype = DTYPES.get(str(tensors[name].dtype))
        if dtype is None:
            raise SaveError(f"{group}: {name} is {tensors[name].dtype}, which a checkpoint cannot hold")
        header[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [offset, end]}
        pieces.append(piece)
        offset = end
    text = _canonical(header)
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *pieces]


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, in the order of its elements; shared where it is contiguous."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _tensors(data: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(data)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(data: bytes) -> str:
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
