"""A loaded checkpoint has the bits of the saved one; old ones are removed, and only the owner publishes."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
import torch

from tests.checkpoint.examples import FIRST, SECOND, assert_is_snapshot, newest_step, snapshot, store
from workflow_lib import checkpoint
from workflow_lib.checkpoint import Snapshot, published, safetensors
from workflow_lib.checkpoint import snapshot as snapshots
from workflow_lib.errors import SaveError, WorkspaceBusy


def test_a_loaded_state_has_the_bits_of_the_saved_one(tmp_path: Path) -> None:
    store(tmp_path).publish(snapshot(7))
    assert_is_snapshot(store(tmp_path, SECOND).load_latest(), 7)


def test_equal_states_give_equal_files(tmp_path: Path) -> None:
    one = store(tmp_path / "one").publish(snapshot(7))
    other = store(tmp_path / "other", SECOND).publish(snapshot(7))
    for name in one.manifest["files"]:
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()


@pytest.mark.parametrize("advice", ["fails", "is missing"])
def test_a_system_that_takes_no_advice_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, advice: str) -> None:
    asked = []

    def fail(descriptor: int, start: int, length: int, _: int) -> None:
        asked.append((start, length))
        raise OSError(errno.ENOSYS, "not here")

    if advice == "fails":
        monkeypatch.setattr(os, "posix_fadvise", fail)
    else:
        monkeypatch.delattr(os, "posix_fadvise")
    values = torch.arange(5 << 20, dtype=torch.float32)
    store(tmp_path).publish(Snapshot(1, {"model": {"values": values}}, {}))
    loaded = store(tmp_path, SECOND).load_latest()
    assert loaded is not None
    assert torch.equal(loaded[1].tensors["model"]["values"], values)
    if advice == "fails":
        ends = [start + length for start, length in asked]
        assert [start for start, _ in asked] == [0, *ends[:-1]]  # each byte once
        assert ends[-1] > values.nbytes - snapshots.WRITEBACK


def test_any_reader_of_safetensors_reads_the_files(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = store(tmp_path).publish(snapshot(3)).path
    with safe_open(path / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(safetensors.DTYPES)


def test_a_directory_that_never_had_a_checkpoint_has_no_latest(tmp_path: Path) -> None:
    assert store(tmp_path).load_latest() is None


def test_the_newest_has_the_highest_step_and_then_the_highest_serial(tmp_path: Path) -> None:
    mine = store(tmp_path, keep_last=9)
    for step in (2, 3, 3, 3):
        mine.publish(snapshot(step))
    assert [checkpoint.read_manifest(path).serial for path in published(tmp_path / "checkpoints")] == [0, 1, 2, 3]
    loaded = store(tmp_path, SECOND).load_latest()
    assert loaded is not None
    assert (loaded[0].step, loaded[0].serial) == (3, 3)


def test_serials_continue_over_attempts_and_each_checkpoint_names_its_parent(tmp_path: Path) -> None:
    first = store(tmp_path).publish(snapshot(1))
    mine = store(tmp_path, SECOND)
    mine.load_latest()
    second = mine.publish(snapshot(2))
    assert (second.serial, second.manifest["parent"]) == (1, first.path.name)


def test_the_last_two_checkpoints_remain(tmp_path: Path) -> None:
    mine = store(tmp_path)
    for step in range(1, 6):
        mine.publish(snapshot(step))
    assert [int(path.name[5:17]) for path in published(tmp_path / "checkpoints")] == [4, 5]


def test_the_first_checkpoint_of_every_period_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    mine = store(tmp_path, keep_last=1, keep_every_h=2.0)
    for step in range(8):
        now = 1_000_800.0 + 3600 * step
        mine.publish(snapshot(step))
    assert [int(path.name[5:17]) for path in published(tmp_path / "checkpoints")] == [0, 2, 4, 6, 7]


def test_retention_leaves_other_files(tmp_path: Path) -> None:
    mine = store(tmp_path, keep_last=1)
    kept = [tmp_path / "checkpoints" / name for name in ("corrupt-step-000000000001.00000.11111111", "notes.txt")]
    for path in kept:
        path.mkdir()
    for step in (1, 2):
        mine.publish(snapshot(step))
    assert all(path.exists() for path in kept)


def test_a_late_owner_cannot_publish(tmp_path: Path) -> None:
    owners = [FIRST]
    mine = store(tmp_path, may_publish=lambda: owners[-1] == FIRST)
    mine.publish(snapshot(1))
    owners.append(SECOND)
    with pytest.raises(WorkspaceBusy, match="another attempt has taken over"):
        mine.publish(snapshot(2))
    assert newest_step(tmp_path) == 1
    assert not list(tmp_path.glob("checkpoints/.tmp-*"))


def test_a_late_owner_removes_no_file_of_its_successor(tmp_path: Path) -> None:
    late = store(tmp_path, may_publish=lambda: False)
    (tmp_path / "checkpoints" / ".tmp-step-of-the-successor").mkdir()
    with pytest.raises(WorkspaceBusy):
        late.remove_leftovers()
    assert (tmp_path / "checkpoints" / ".tmp-step-of-the-successor").exists()


def test_a_dtype_that_the_format_does_not_have_is_an_error(tmp_path: Path) -> None:
    complex_weights = {"model": {"w": torch.zeros(2, dtype=torch.complex64)}}
    with pytest.raises(SaveError, match=r"model.*w.*complex64"):
        store(tmp_path).publish(Snapshot(1, complex_weights, {}))
    assert not list((tmp_path / "checkpoints").iterdir())
