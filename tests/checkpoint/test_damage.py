"""A checkpoint that was damaged, edited or replaced is never loaded."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from tests.checkpoint.examples import DAMAGES, FILES, FINGERPRINT, SECOND, flip_bit, newest_step, snapshot, store
from tests.support.crash import SURVIVED, fork, run_forked, wait
from tests.support.faults import FileFault
from workflow_lib import checkpoint
from workflow_lib.checkpoint import published
from workflow_lib.errors import CheckpointError, UnreadableError
from workflow_lib.files import compact_json


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_renamed_and_the_one_before_is_used(
    tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    mine = store(tmp_path)
    mine.publish(snapshot(1))
    newest = mine.publish(snapshot(2)).path
    DAMAGES[damage](newest / file)
    assert newest_step(tmp_path) == 1
    assert not newest.exists()
    assert newest.with_name(f"corrupt-{newest.name}").is_dir()
    assert newest.name in caplog.text
    assert newest_step(tmp_path) == 1


@pytest.mark.parametrize("file", FILES)
def test_files_swapped_between_steps_are_damage(tmp_path: Path, file: str) -> None:
    mine = store(tmp_path, keep_last=3)
    mine.publish(snapshot(1))
    older, newer = mine.publish(snapshot(2)).path, mine.publish(snapshot(3)).path
    moved = (older / file).read_bytes()
    (older / file).write_bytes((newer / file).read_bytes())
    (newer / file).write_bytes(moved)
    assert newest_step(tmp_path) == 1


@pytest.mark.parametrize("key", ["step", "serial", "fingerprint", "files", "about", "version", "digest"])
def test_an_edited_manifest_is_damage(tmp_path: Path, key: str) -> None:
    mine = store(tmp_path)
    mine.publish(snapshot(1))
    path = mine.publish(snapshot(2)).path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[key] = {"run": "x"} if isinstance(manifest[key], dict) else 9
    path.write_text(json.dumps(manifest, sort_keys=True, separators=(",", ":")))
    assert newest_step(tmp_path) == 1


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "3", '{"digest": 1}', "\x00" * 40])
def test_a_manifest_with_other_content_is_damage(tmp_path: Path, text: str) -> None:
    mine = store(tmp_path)
    mine.publish(snapshot(1))
    (mine.publish(snapshot(2)).path / "manifest.json").write_text(text)
    assert newest_step(tmp_path) == 1


def test_a_checkpoint_renamed_to_a_higher_step_is_damage(tmp_path: Path) -> None:
    mine = store(tmp_path)
    older = mine.publish(snapshot(1)).path
    mine.publish(snapshot(2))
    older.rename(older.with_name(older.name.replace("000001.", "000009.")))
    assert newest_step(tmp_path) == 2


def test_a_higher_step_of_another_run_is_not_used(tmp_path: Path) -> None:
    store(tmp_path).publish(snapshot(2))
    stranger = store(tmp_path / "other", SECOND, fingerprint={**FINGERPRINT, "run": "c" * 32}).publish(snapshot(9)).path
    shutil.copytree(stranger, tmp_path / "checkpoints" / stranger.name)
    assert newest_step(tmp_path) == 2


def test_when_all_are_damaged_the_run_does_not_start_again(tmp_path: Path) -> None:
    mine = store(tmp_path)
    for step in (1, 2):
        flip_bit(mine.publish(snapshot(step)).path / "model.safetensors")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"none of the checkpoints .* can be used"):
            store(tmp_path, SECOND).load_latest()


def test_a_damaged_checkpoint_that_cannot_be_renamed_is_still_an_error(tmp_path: Path) -> None:
    flip_bit(store(tmp_path).publish(snapshot(1)).path / "model.safetensors")

    def load() -> None:
        with pytest.raises(CheckpointError, match=r"none of the checkpoints .* can be used"):
            store(tmp_path, SECOND).load_latest()

    read_only = FileFault("EROFS", f"{tmp_path}/*", operation="rename", rank=-1, times=0)
    assert run_forked(load, [read_only]) == SURVIVED


@pytest.mark.parametrize("file", ["manifest.json", "state.json", "model.safetensors"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ESTALE])
def test_a_checkpoint_that_cannot_be_read_now_stays_where_it_is(tmp_path: Path, file: str, number: int) -> None:
    """Causes: too few descriptors, permissions of another user, a file server that does not answer."""
    mine = store(tmp_path)
    paths = [mine.publish(snapshot(step)).path for step in (1, 2)]

    def fails(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]) == str(paths[1] / file):
            raise OSError(number, os.strerror(number))

    def load() -> None:
        sys.addaudithook(fails)
        with pytest.raises(UnreadableError, match=rf"{file} cannot be read now \({os.strerror(number)}\)"):
            store(tmp_path, SECOND).load_latest()

    assert run_forked(load) == SURVIVED
    assert published(tmp_path / "checkpoints") == paths
    assert newest_step(tmp_path) == 2


def test_an_intact_copy_put_back_is_used_again(tmp_path: Path) -> None:
    mine = store(tmp_path)
    path = mine.publish(snapshot(1)).path
    shutil.copytree(path, tmp_path / "copy")
    flip_bit(path / "model.safetensors")
    with pytest.raises(CheckpointError):
        store(tmp_path, SECOND).load_latest()
    shutil.copytree(tmp_path / "copy", path)
    assert newest_step(tmp_path) == 1


def test_leftovers_are_never_used_and_are_removed(tmp_path: Path) -> None:
    mine = store(tmp_path)
    path = mine.publish(snapshot(1)).path
    for name in (f".tmp-{path.name}", f".trash-{path.name}"):
        shutil.copytree(path, path.with_name(name))
    shutil.copytree(path, path.with_name("step-000000000099.00000.tooshort"))
    assert newest_step(tmp_path) == 1
    mine.remove_leftovers()
    assert not list(path.parent.glob(".t*"))
    assert newest_step(tmp_path) == 1


def test_a_file_with_a_correct_digest_that_holds_no_tensors_is_damage(tmp_path: Path) -> None:
    mine = store(tmp_path, keep_last=2)
    mine.publish(snapshot(1))
    path = mine.publish(snapshot(2)).path
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest.pop("digest")
    content = b"no tensors at all"
    (path / "model.safetensors").write_bytes(content)
    manifest["files"]["model.safetensors"] = {"bytes": len(content), "blake3": blake3(content).hexdigest()}
    manifest["digest"] = checkpoint.digest(compact_json(manifest))
    (path / "manifest.json").write_bytes(compact_json(manifest))
    assert newest_step(tmp_path) == 1
    assert list(tmp_path.glob("checkpoints/corrupt-*"))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/dev/zero", "a/b.safetensors", "", ".", "..", "a\n"])
def test_a_manifest_may_name_files_of_its_own_folder_only(name: str, tmp_path: Path) -> None:
    path = store(tmp_path).publish(snapshot(1)).path
    shutil.copy(path / "model.safetensors", path.parent / "secret.safetensors")
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"][name] = manifest["files"]["model.safetensors"]
    write_manifest(path, manifest)
    with pytest.raises(CheckpointError, match="files in its own folder"):
        checkpoint.read_manifest(path)


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """An attacker who can write the manifest can also write a matching digest."""
    del manifest["digest"]
    manifest["digest"] = checkpoint.digest(compact_json(manifest))
    (path / "manifest.json").write_bytes(compact_json(manifest))


@pytest.mark.parametrize(
    "entry",
    [None, {}, {"bytes": "8", "blake3": ""}, {"bytes": 8, "blake3": None}, {"bytes": 8, "blake2b": ""}, []],
)
def test_a_manifest_with_a_file_of_unknown_size_is_damaged(entry: Any, tmp_path: Path) -> None:
    path = store(tmp_path).publish(snapshot(1)).path
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"]["model.safetensors"] = entry
    write_manifest(path, manifest)
    with pytest.raises(CheckpointError, match="manifest.json is damaged"):
        checkpoint.read_manifest(path)


@pytest.mark.parametrize("kind", ["link", "device", "pipe"])
@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_no_link_device_or_pipe_is_read(name: str, kind: str, tmp_path: Path) -> None:
    """A device has no end, and nobody writes to the pipe: a read of either would never return."""
    path = store(tmp_path).publish(snapshot(1)).path
    (path / name).rename(tmp_path / name)
    if kind == "pipe":
        os.mkfifo(path / name)
    else:
        (path / name).symlink_to(tmp_path / name if kind == "link" else "/dev/zero")

    def work() -> None:
        with pytest.raises(CheckpointError, match="cannot read|none of the checkpoints"):
            checkpoint.verify(checkpoint.read_manifest(path))
        with pytest.raises(CheckpointError, match="none of the checkpoints"):
            store(tmp_path, SECOND).load_latest()

    assert wait(fork(work), timeout_s=60) == SURVIVED
