"""A checkpoint of an earlier format is loaded, verified and continued; one of a later format stays where it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.checkpoint.examples import DAMAGES, SECOND, assert_is_snapshot, newest_step, snapshot, store
from tests.support.stages import ROOT
from workflow_lib import checkpoint
from workflow_lib.errors import CheckpointError, UnreadableError
from workflow_lib.files import compact_json

FORMAT_1 = ROOT / "tests" / "recorded" / "checkpoint-format-1"  # of step 7, written by version 0.2.0


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return the path of a checkpoint of format 1 in the store of the folder."""
    shutil.copytree(FORMAT_1, tmp_path / "checkpoints")
    (path,) = checkpoint.published(tmp_path / "checkpoints")
    return path


def test_a_checkpoint_of_format_1_is_loaded_and_continued(old: Path, tmp_path: Path) -> None:
    mine = store(tmp_path, SECOND)
    assert_is_snapshot(mine.load_latest(), 7)
    checkpoint.verify(checkpoint.read_manifest(old))
    newer = mine.publish(snapshot(8))
    assert newer is not None
    assert (newer.serial, newer.manifest["parent"], newer.manifest["version"]) == (1, old.name, 2)
    assert {*newer.manifest["files"]["model.safetensors"]} == {"bytes", "blake3"}
    assert newest_step(tmp_path) == 8


@pytest.mark.parametrize("damage", ["a flipped bit", "a lost last byte", "zeros"])
@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
def test_a_damaged_checkpoint_of_format_1_is_found(old: Path, tmp_path: Path, file: str, damage: str) -> None:
    DAMAGES[damage](old / file)
    with pytest.raises(CheckpointError, match=rf"{file}"):
        checkpoint.verify(checkpoint.read_manifest(old))
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        store(tmp_path, SECOND).load_latest()
    assert old.with_name(f"corrupt-{old.name}").is_dir()


def test_a_checkpoint_of_a_later_format_is_not_renamed(tmp_path: Path) -> None:
    """Its run would lose steps if an older version set it aside and continued from the checkpoint before it."""
    mine = store(tmp_path)
    mine.publish(snapshot(1))
    path = mine.publish(snapshot(2)).path
    manifest = json.loads((path / "manifest.json").read_bytes()) | {"version": 3}
    del manifest["digest"]
    manifest["digest"] = checkpoint.digest(compact_json(manifest))
    (path / "manifest.json").write_bytes(compact_json(manifest))
    with pytest.raises(UnreadableError, match=r"has format 3, of a later version .* reads formats up to 2"):
        store(tmp_path, SECOND).load_latest()
    assert path.is_dir()
