"""The checkpoints of a workspace: they are published atomically, and verified when they are loaded.

    checkpoints/step-000000012345.00017.1b2c3d4e/   step, serial number in the run, attempt
        model.safetensors ...                       one file for each group of tensors
        moving-00001-of-00004.safetensors ...       one file for each rank, if the ranks share the tensors
        state.json                                  everything that is not a tensor
        manifest.json                               written last: size and BLAKE3 of each file, BLAKE2b of itself
    checkpoints/.tmp-*                              an interrupted save; the next attempt removes it
    checkpoints/corrupt-*                           failed verification: never used, and never removed here

Publishing: every file is synced, then the manifest, then the folder. Then one ``rename`` makes the folder visible, and
the parent is synced. Nothing is overwritten, and no file points to the newest checkpoint: it is the verified one with
the highest step, then the highest serial number. Nothing is pickled.

If the ranks share the tensors, all of them write into one folder, and rank 0 publishes it when it has the digests of
all files, which are in the sharded format of torch.distributed.checkpoint's safetensors reader.
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
    """The checkpoints of one workspace, for one attempt.

    fingerprint    digests of run, data and code, which a checkpoint must match to be loaded
    may_publish    returns False once another attempt owns the workspace
    keep_last      number of newest checkpoints to keep
    keep_every_h   keep also the first checkpoint of every period of so many hours
    peers          the ranks that share the tensors; without them this process writes alone
    """

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
        """Write the snapshot durably under a new name. Return the checkpoint on rank 0, and None on the other ranks.

        Raises SaveError if the disk fails, and WorkspaceBusy if another attempt has taken over the workspace. Either
        way the checkpoints published before are untouched.
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
            self.check_ownership()
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
        are returned, so the host holds one copy of the state. A checkpoint that fails verification is renamed to
        ``corrupt-*`` with a warning. Raises CheckpointError if checkpoints exist but none can be used, since a run
        never silently starts again, and UnreadableError if one cannot be read now but may be intact.
        """
        return self._find_latest(read_snapshot)

    def find_shared(self) -> Checkpoint | None:
        """Return the newest verified checkpoint, the same on all ranks, or None. A collective: all ranks call it.

        Each rank verifies some of the files; a checkpoint that one rank finds damaged is used by none.
        """
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
        """Return True if there is only one checkpoint although ``keep_last`` is more."""
        return self._keep_last > 1 and len(published(self.directory)) == 1

    def remove_leftovers(self) -> None:
        """Remove interrupted saves and removals of earlier attempts. Raises WorkspaceBusy unless this is the owner."""
        self.check_ownership()
        for pattern in (".tmp-*", ".trash-*"):
            for path in self.directory.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def _find_latest(self, check: Callable[[Checkpoint], T]) -> tuple[Checkpoint, T] | None:
        """Return the newest checkpoint that passes the check, with the check's result, or None if there are none.

        ``check`` raises CheckpointError for a checkpoint that cannot be used.
        """
        unusable = {path.name for path in self.directory.glob("corrupt-*")}
        for path in reversed(published(self.directory)):
            try:
                checkpoint = read_manifest(path)
                self._check_fingerprint(checkpoint)
                found = check(checkpoint)
            except UnreadableError:
                raise
            except CheckpointError as error:
                unusable.add(self._quarantine(path, error).name)
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
                verify(checkpoint)  # if rank 0 can read it, it is not quarantined
                raise RankError(f"rank {rank} cannot use {checkpoint.path}: {damage}; rank 0 can: is this disk shared?")

    def _damage(self, checkpoint: Checkpoint) -> str | None:
        """Verify this rank's share of the files; return the error text, or None."""
        try:
            for number, (name, entry) in enumerate(files_of(checkpoint)):
                if number % self._peers.world_size == self._peers.rank:
                    check_file(checkpoint.path / name, entry)
        except CheckpointError as error:
            return str(error)
        return None

    def _open(self, temporary: Path) -> None:
        """Create the folder and broadcast its name, or None if that failed, so that the other ranks do not wait."""
        announced = None
        try:
            self.check_ownership()  # only saves the work of writing: the check that counts precedes the rename
            temporary.mkdir()
            announced = temporary.name
        finally:
            self._peers.broadcast(announced)

    def _contribute(self, snapshot: Snapshot) -> None:
        """Write this rank's files into the folder of rank 0, and send it their digests, or the error."""
        name = self._peers.broadcast(None)
        if name is not None:
            self._peers.gather(write_groups(self.directory / name, snapshot))

    def _write_all(self, directory: Path, snapshot: Snapshot) -> dict[str, Any]:
        """Write the files of this rank and wait for those of the others; return sizes and digests of all."""
        files: dict[str, Any] = {}
        for rank, written in enumerate(self._peers.gather(write_groups(directory, snapshot))):
            if isinstance(written, str):
                raise OSError(written)
            for name, entry in written.items():
                if rank and (directory / name).stat().st_size != entry["bytes"]:
                    raise OSError(f"rank {rank} wrote {name}, but rank 0 sees another file: is this disk shared?")
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

    def check_ownership(self) -> None:
        """Raise WorkspaceBusy if another attempt has taken over the workspace."""
        if not self._may_publish():
            raise WorkspaceBusy(
                f"attempt {self._attempt[:8]} no longer owns {self.directory.parent}: another attempt has taken over "
                f"and continues the run; this one published nothing more"
            )

    def _check_fingerprint(self, checkpoint: Checkpoint) -> None:
        theirs = checkpoint.manifest["fingerprint"]
        for key in sorted(self.fingerprint.keys() | theirs.keys()):
            if self.fingerprint.get(key) != theirs.get(key):
                mine = self.fingerprint.get(key)
                raise CheckpointError(f"belongs to another run: its {key} is {theirs.get(key)!r}, not {mine!r}")

    def _quarantine(self, path: Path, error: CheckpointError) -> Path:
        """Rename the checkpoint to ``corrupt-*``; return its path, which is the old one if that fails."""
        logger.warning("checkpoint %s is not used: %s; renamed to corrupt-%s", path.name, error, path.name)
        try:
            return path.rename(path.with_name(f"corrupt-{path.name}"))
        except OSError as failure:
            logger.warning("cannot rename %s: %s", path, failure)
            return path

    def _retain(self) -> None:
        """Remove all checkpoints but the last ``keep_last`` and the first of every ``keep_every_h`` hours."""
        paths = published(self.directory)
        kept = set(paths[-self._keep_last :])
        if self._keep_every_h is not None:
            kept |= first_of_each_period([path for path in paths if path not in kept], self._keep_every_h * 3600)
        for path in paths:
            if path not in kept:
                # renamed first: a checkpoint must never be visible with some of its files removed
                trash = path.with_name(f".trash-{path.name}")
                try:
                    path.rename(trash)
                    shutil.rmtree(trash)
                except OSError as error:
                    logger.warning("cannot remove the old checkpoint %s: %s", path.name, error)


def publish_folder(source: Path, target: Path) -> None:
    """Rename the source to the target, which must not exist."""
    try:
        source.rename(target)
    except OSError:
        # a network file system may repeat a request whose answer was lost: then the rename is done already
        if source.exists() or not target.exists():
            raise


def first_of_each_period(paths: list[Path], period_s: float) -> set[Path]:
    """Return the first checkpoint of each period of the clock, and all whose manifest cannot be read.

    The latter are left for the next load, which warns of them and renames them.
    """
    kept: dict[int, Path] = {}
    unreadable = set()
    for path in paths:
        try:
            kept.setdefault(int(read_manifest(path).manifest["created"] // period_s), path)
        except CheckpointError:
            unreadable.add(path)
    return set(kept.values()) | unreadable
