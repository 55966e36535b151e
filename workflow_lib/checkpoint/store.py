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

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from workflow_lib.checkpoint.manifest import (
    MANIFEST,
    STATE,
    VERSION,
    Checkpoint,
    check_file,
    digest,
    files_of,
    published,
    read_manifest,
    verify,
)
from workflow_lib.checkpoint.snapshot import Snapshot, read_snapshot, write_groups, write_synced
from workflow_lib.distributed.ranks import Peers
from workflow_lib.errors import CheckpointError, RankError, SaveError, UnreadableError, WorkspaceBusy
from workflow_lib.files import compact_json, fsync_dir

logger = logging.getLogger(__name__)

T = TypeVar("T")


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
            publish_folder(temporary, final)
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

    def load_latest(self) -> tuple[Checkpoint, Snapshot] | None:
        """Return the newest verified checkpoint and its contents; None if there has never been a checkpoint.

        Each file is read once, each tensor directly into its own memory, and the digest is computed on the bytes that
        are returned, so the host holds one copy of the state. A checkpoint that does not verify is renamed to
        ``corrupt-*`` with a warning. Raises CheckpointError when checkpoints exist but none can be used (a run never
        silently starts again), and UnreadableError when one cannot be read now, but may be whole.
        """
        return self._find_latest(read_snapshot)

    def find_shared(self) -> Checkpoint | None:
        """The same, on all ranks alike: each reads a part of the files, and what one finds damaged none uses."""
        if not self._peers.is_main:
            newest = None
            while (found := self._peers.broadcast(None)) is not None:
                newest = Checkpoint(self.directory / found["name"], found["manifest"])
                self._peers.gather(self._damage(newest))
            return newest if self._peers.broadcast(None) else None
        try:
            latest = self._find_latest(self._verify_together)
        finally:
            self._peers.broadcast(None)
        self._peers.broadcast(latest is not None)
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
        self._peers.broadcast({"name": checkpoint.path.name, "manifest": dict(checkpoint.manifest)})
        for rank, damage in enumerate(self._peers.gather(self._damage(checkpoint))):
            if damage is not None:
                verify(checkpoint)  # what only another rank cannot read is no reason to set it aside
                raise RankError(f"rank {rank} says of {checkpoint.path}: {damage}; rank 0 can: is this disk shared?")

    def _damage(self, checkpoint: Checkpoint) -> str | None:
        """What is wrong with the files that fall to this rank."""
        try:
            for number, (name, entry) in enumerate(files_of(checkpoint)):
                if number % self._peers.world_size == self._peers.rank:
                    check_file(checkpoint.path / name, entry)
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
            self._peers.broadcast(announced)

    def _contribute(self, snapshot: Snapshot) -> None:
        """This rank's files are durable in the folder of rank 0, which knows their digests, or why not."""
        name = self._peers.broadcast(None)
        if name is not None:
            self._peers.gather(write_groups(self.directory / name, snapshot))

    def _write_all(self, directory: Path, snapshot: Snapshot) -> dict[str, Any]:
        """Sizes and digests of the files of all ranks, which are durable."""
        files: dict[str, Any] = {}
        for rank, written in enumerate(self._peers.gather(write_groups(directory, snapshot))):
            if isinstance(written, str):
                raise OSError(written)
            for name, entry in written.items():
                if rank and (directory / name).stat().st_size != entry["bytes"]:
                    raise OSError(f"{name}, which rank {rank} wrote, is not the same here: is this disk shared?")
            files.update(written)
        files[STATE] = write_synced(directory / STATE, [compact_json(snapshot.state)])
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
        write_synced(directory / MANIFEST, [compact_json(manifest)])
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
            kept |= first_of_each_period([path for path in paths if path not in kept], self._keep_every_h * 3600)
        for path in paths:
            if path not in kept:
                trash = path.with_name(f".trash-{path.name}")
                try:
                    path.rename(trash)
                    shutil.rmtree(trash)
                except OSError as error:
                    logger.warning("cannot remove the old checkpoint %s: %s", path.name, error)


def publish_folder(source: Path, target: Path) -> None:
    """The target, which did not exist, is what the source was."""
    try:
        source.rename(target)
    except OSError:
        if source.exists() or not target.exists():  # else a network file system has asked twice
            raise


def first_of_each_period(paths: list[Path], period_s: float) -> set[Path]:
    """The first checkpoint of each period of the clock; one whose manifest cannot be read is kept for the loader."""
    kept: dict[int, Path] = {}
    unreadable = set()
    for path in paths:
        try:
            kept.setdefault(int(read_manifest(path).manifest["created"] // period_s), path)
        except CheckpointError:
            unreadable.add(path)
    return set(kept.values()) | unreadable
