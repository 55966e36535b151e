"""No crash and no failing disk loses a published checkpoint or publishes a partial one."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3

from tests.checkpoint.examples import MEMORY, SECOND, flip_bit, newest_step, snapshot, store
from tests.support.crash import SURVIVED, operations, run_forked
from tests.support.faults import FileFault, Mode
from workflow_lib.checkpoint import Snapshot, published
from workflow_lib.checkpoint import snapshot as snapshots
from workflow_lib.checkpoint import store as stores
from workflow_lib.errors import SaveError

CRASHES: tuple[Mode, ...] = ("before", "torn", "unsynced", "unnamed")
PARTS = (0.0, 0.5, 1.0)  # partial files: one byte, half, all but the last byte


@pytest.fixture
def prepared() -> Iterator[Path]:
    """Create a store with three checkpoints, of which retention removes two, and a leftover; in memory if possible."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        mine = store(Path(folder) / "original", keep_last=3)
        for step in (1, 2, 3):
            mine.publish(snapshot(step))
        shutil.copytree(published(mine.directory)[0], mine.directory / ".tmp-leftover")
        yield Path(folder) / "original"


def copies(original: Path) -> Iterator[Path]:
    """Yield fresh copies, and remove each before the next."""
    place = original.with_name("copy")
    while True:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(original, place)
        yield place


def save(directory: Path) -> None:
    mine = store(directory, SECOND)
    mine.remove_leftovers()
    mine.load_latest()
    mine.publish(snapshot(4))


def load(directory: Path) -> None:
    store(directory, SECOND).load_latest()


@pytest.mark.parametrize("mode", CRASHES)
def test_a_crash_at_any_operation_of_a_save_leaves_the_old_or_the_new_state(prepared: Path, mode: Mode) -> None:
    """Load, save and retention take 60 operations on files; a process dies at each of them."""
    places = copies(prepared)
    place = next(places)
    done = operations(lambda: save(place), str(place))
    renamed = next(number for number, line in enumerate(done) if re.match(r"rename\t/checkpoints/\.tmp", line))
    kinds = {"open", "write", "fsync", "fsync folder", "mkdir", "rename", "remove", "rmdir", "read"}
    assert {line.split("\t")[0] for line in done} == kinds
    for count in range(1, len(done) + 1):
        place = next(places)
        fault = FileFault(path=f"{place}/*", count=count, rank=-1, mode=mode, part=PARTS[count % 3])
        assert run_forked(partial(save, place), [fault]) == -signal.SIGKILL, done[count - 1]
        found = newest_step(place)
        assert found == 3 or (found == 4 and count > renamed), done[count - 1]
        assert not list(place.glob("checkpoints/corrupt-*")), done[count - 1]
        save(place)
        assert newest_step(place) == 4
        assert len(published(place / "checkpoints")) == 2
        assert not list(place.glob("checkpoints/.t*"))


def test_a_crash_at_any_operation_of_a_load_that_falls_back_loses_no_state(prepared: Path) -> None:
    flip_bit(published(prepared / "checkpoints")[-1] / "optimizer.safetensors")
    places = copies(prepared)
    place = next(places)
    done = operations(lambda: store(place).load_latest(), str(place))
    for count in range(1, len(done) + 1):
        place = next(places)
        fault = FileFault("unnamed", f"{place}/*", count=count, rank=-1)
        assert run_forked(partial(load, place), [fault]) == -signal.SIGKILL
        assert newest_step(place) == 2


def test_a_file_that_is_not_synced_is_found(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The crash tests can fail: without the sync before the rename, a power cut leaves a checkpoint in name only."""

    def write_unsynced(path: Path, chunks: Any) -> dict[str, Any]:
        data = b"".join(bytes(chunk) for chunk in chunks)
        path.write_bytes(data)
        return {"bytes": len(data), "blake3": blake3(data).hexdigest()}

    monkeypatch.setattr(stores, "write_synced", write_unsynced)
    monkeypatch.setattr(snapshots, "write_synced", write_unsynced)
    fault = FileFault("unsynced", f"{prepared}/*/.trash*", count=1, rank=-1)
    assert run_forked(lambda: save(prepared), [fault]) == -signal.SIGKILL
    newest_step(prepared)
    assert list(prepared.glob("checkpoints/corrupt-*"))


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_a_disk_that_fails_at_any_operation_of_a_save_damages_nothing(prepared: Path, error: Any) -> None:
    def refused(place: Path) -> None:
        mine = store(place, SECOND)
        mine.load_latest()
        with pytest.raises(SaveError, match=r"cannot save a checkpoint of step 4 in .*checkpoints"):
            mine.publish(snapshot(4))
        assert not list(place.glob("checkpoints/.tmp-step*"))
        mine.publish(snapshot(5))  # the disk works again

    places = copies(prepared)
    place = next(places)
    done = operations(lambda: store(place, SECOND).publish(snapshot(4)), str(place))
    published_at = done.index(next(line for line in done if line.startswith("rename"))) + 1
    place = next(places)
    reads = len(operations(lambda: store(place).load_latest(), str(place)))
    for count in range(1, published_at + 1):  # the sync of the parent comes after the rename
        place = next(places)
        fault = FileFault(error, f"{place}/*", count=reads + count, rank=-1)
        assert run_forked(partial(refused, place), [fault]) == SURVIVED, done[count]
        assert newest_step(place) == 5


def test_a_disk_that_cannot_remove_old_checkpoints_does_not_fail_the_save(prepared: Path) -> None:
    fault = FileFault("EIO", f"{prepared}/*/step-000000000001*", operation="rename", rank=-1, times=0)
    assert run_forked(lambda: save(prepared), [fault]) == SURVIVED
    assert newest_step(prepared) == 4


def test_a_file_size_limit_is_a_failing_disk_too(tmp_path: Path) -> None:
    """The kernel fails the write in the middle."""
    mine = store(tmp_path)
    mine.publish(snapshot(1))
    large = Snapshot(2, {"model": {"w": torch.zeros(1 << 18)}}, {})

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        with pytest.raises(SaveError, match="File too large"):
            mine.publish(large)

    assert run_forked(limited) == SURVIVED
    assert newest_step(tmp_path) == 1
    assert not list(tmp_path.glob("checkpoints/.tmp-*"))


def test_a_step_can_be_saved_again_after_its_folder_could_not_be_synced(tmp_path: Path) -> None:
    """The name exists already when the sync fails, so the next save of that step needs another name."""

    def twice() -> None:
        mine = store(tmp_path)
        with pytest.raises(SaveError):
            mine.publish(snapshot(4))
        mine.publish(snapshot(4))

    fault = FileFault("EIO", f"{tmp_path}/checkpoints", operation="fsync folder", rank=-1)
    assert run_forked(twice, [fault]) == SURVIVED
    assert newest_step(tmp_path) == 4


def test_a_rename_that_was_done_but_reported_as_failed_is_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system that repeats a request whose answer was lost does not find the source any more."""
    rename = os.rename

    def answer_lost(source: Path, target: Path) -> None:
        rename(source, target)
        raise FileNotFoundError(source)

    monkeypatch.setattr(os, "rename", answer_lost)
    store(tmp_path).publish(snapshot(1))
    monkeypatch.undo()
    assert newest_step(tmp_path) == 1
