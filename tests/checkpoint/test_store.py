"""What is published is whole, what is loaded is verified; no crash and no damage makes a run start again."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.crash import SURVIVED, fork, operations, run_forked, wait
from tests.support.faults import FileFault, Mode
from workflow_lib import checkpoint
from workflow_lib.checkpoint import CheckpointStore, Snapshot, published, safetensors
from workflow_lib.checkpoint import snapshot as snapshots
from workflow_lib.checkpoint import store as stores
from workflow_lib.errors import CheckpointError, SaveError, UnreadableError, WorkspaceBusy
from workflow_lib.files import compact_json

FINGERPRINT = {"run": "a" * 32, "data": "b" * 32}
FIRST, SECOND = "1" * 32, "2" * 32
MEMORY = Path("/dev/shm")  # a sync costs nothing there
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def store(directory: Path, attempt: str = FIRST, **options: Any) -> CheckpointStore:
    settings = {"fingerprint": FINGERPRINT, "may_publish": lambda: True, **options}
    return CheckpointStore(directory / "checkpoints", attempt=attempt, **settings)


def snapshot(step: int) -> Snapshot:
    """A state that tells its step, of every dtype that a checkpoint can hold, with odd shapes."""
    values = torch.arange(12, dtype=torch.float32).reshape(3, 4) + step
    tensors = {dtype: values.to(getattr(torch, dtype)) for dtype in safetensors.DTYPES}
    odd = {
        "scalar": torch.tensor(step, dtype=torch.int64),
        "empty": torch.empty(0, 3),
        "transposed": values.t(),
        "expanded": values[:1, :1].expand(2, 2),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "learnt": values.clone().requires_grad_(),
    }
    state = {"cursor": {"step": step}, "history": [{"loss": 0.1 + step}], "text": "ä"}
    return Snapshot(step, {"model": tensors, "optimizer": odd}, state, {"cursor": {"step": step}})


def assert_is_snapshot(loaded: Any, step: int) -> None:
    """The loaded state is that of the step, in every bit."""
    found, contents = loaded
    want = snapshot(step)
    assert found.step == step
    assert (contents.step, contents.state, contents.about) == (step, want.state, want.about)
    assert contents.tensors.keys() == want.tensors.keys()
    for group, named in want.tensors.items():
        assert contents.tensors[group].keys() == named.keys()
        for name, tensor in named.items():
            got = contents.tensors[group][name]
            assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape), name
            assert bits(got) == bits(tensor), name


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def newest_step(directory: Path) -> int:
    loaded = store(directory, SECOND).load_latest()
    assert loaded is not None
    assert_is_snapshot(loaded, loaded[0].step)
    return loaded[0].step


def test_a_loaded_state_has_the_bits_of_the_saved_one(tmp_path: Path) -> None:
    store(tmp_path).publish(snapshot(7))
    assert_is_snapshot(store(tmp_path, SECOND).load_latest(), 7)


def test_equal_states_make_equal_files(tmp_path: Path) -> None:
    one = store(tmp_path / "one").publish(snapshot(7))
    other = store(tmp_path / "other", SECOND).publish(snapshot(7))
    for name in one.manifest["files"]:
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()


def test_any_reader_of_safetensors_reads_the_files(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = store(tmp_path).publish(snapshot(3)).path
    with safe_open(path / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(safetensors.DTYPES)


def test_a_directory_that_never_had_one_has_no_latest(tmp_path: Path) -> None:
    assert store(tmp_path).load_latest() is None


def test_the_newest_has_the_highest_step_and_then_the_highest_serial(tmp_path: Path) -> None:
    mine = store(tmp_path, keep_last=9)
    for step in (2, 3, 3, 3):
        mine.publish(snapshot(step))
    assert [checkpoint.read_manifest(path).serial for path in published(tmp_path / "checkpoints")] == [0, 1, 2, 3]
    loaded = store(tmp_path, SECOND).load_latest()
    assert loaded is not None
    assert (loaded[0].step, loaded[0].serial) == (3, 3)


def test_serials_go_on_over_attempts_and_each_names_its_parent(tmp_path: Path) -> None:
    first = store(tmp_path).publish(snapshot(1))
    mine = store(tmp_path, SECOND)
    mine.load_latest()
    second = mine.publish(snapshot(2))
    assert (second.serial, second.manifest["parent"]) == (1, first.path.name)


# -- damage ------------------------------------------------------------------------------------------------------


def _flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": _flip_bit,
    "a flipped last bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "a lost last byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "nothing": lambda path: os.truncate(path, 0),
    "no file": Path.unlink,
    "a folder": _make_folder,
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"}"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
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
def test_files_swapped_between_steps_are_noticed(tmp_path: Path, file: str) -> None:
    mine = store(tmp_path, keep_last=3)
    mine.publish(snapshot(1))
    older, newer = mine.publish(snapshot(2)).path, mine.publish(snapshot(3)).path
    moved = (older / file).read_bytes()
    (older / file).write_bytes((newer / file).read_bytes())
    (newer / file).write_bytes(moved)
    assert newest_step(tmp_path) == 1


@pytest.mark.parametrize("key", ["step", "serial", "fingerprint", "files", "about", "version", "digest"])
def test_an_edited_manifest_is_noticed(tmp_path: Path, key: str) -> None:
    mine = store(tmp_path)
    mine.publish(snapshot(1))
    path = mine.publish(snapshot(2)).path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[key] = {"run": "x"} if isinstance(manifest[key], dict) else 9
    path.write_text(json.dumps(manifest, sort_keys=True, separators=(",", ":")))
    assert newest_step(tmp_path) == 1


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "3", '{"digest": 1}', "\x00" * 40])
def test_a_manifest_that_is_something_else_is_noticed(tmp_path: Path, text: str) -> None:
    mine = store(tmp_path)
    mine.publish(snapshot(1))
    (mine.publish(snapshot(2)).path / "manifest.json").write_text(text)
    assert newest_step(tmp_path) == 1


def test_a_renamed_checkpoint_does_not_pass_for_a_newer_one(tmp_path: Path) -> None:
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
        _flip_bit(mine.publish(snapshot(step)).path / "model.safetensors")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"none of the checkpoints .* can be used"):
            store(tmp_path, SECOND).load_latest()


def test_a_damaged_one_that_cannot_be_set_aside_is_still_an_error(tmp_path: Path) -> None:
    _flip_bit(store(tmp_path).publish(snapshot(1)).path / "model.safetensors")

    def load() -> None:
        with pytest.raises(CheckpointError, match=r"none of the checkpoints .* can be used"):
            store(tmp_path, SECOND).load_latest()

    read_only = FileFault("EROFS", f"{tmp_path}/*", operation="rename", rank=-1, times=0)
    assert run_forked(load, [read_only]) == SURVIVED


@pytest.mark.parametrize("file", ["manifest.json", "state.json", "model.safetensors"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ESTALE])
def test_a_checkpoint_that_cannot_be_read_now_stays_where_it_is(tmp_path: Path, file: str, number: int) -> None:
    """Too few descriptors, a colleague's permissions, a file server that is away."""
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
    _flip_bit(path / "model.safetensors")
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


# -- crashes at every operation on a file ---------------------------------------------------------------------------

CRASHES: tuple[Mode, ...] = ("before", "torn", "unsynced", "unnamed")
PARTS = (0.0, 0.5, 1.0)  # torn to one byte, in half, before the last byte


@pytest.fixture
def prepared() -> Iterator[Path]:
    """A store with three checkpoints, of which retention will remove two, and a leftover; in memory if possible."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        mine = store(Path(folder) / "original", keep_last=3)
        for step in (1, 2, 3):
            mine.publish(snapshot(step))
        shutil.copytree(published(mine.directory)[0], mine.directory / ".tmp-leftover")
        yield Path(folder) / "original"


def copies(original: Path) -> Iterator[Path]:
    """Fresh copies, one after the other, each removed when the next is asked for."""
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
    """Load, save and retention are 60 operations on files, and the process dies at each of them: a few seconds."""
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


def test_a_crash_at_any_operation_of_a_load_that_falls_back_loses_nothing(prepared: Path) -> None:
    _flip_bit(published(prepared / "checkpoints")[-1] / "optimizer.safetensors")
    places = copies(prepared)
    place = next(places)
    done = operations(lambda: store(place).load_latest(), str(place))
    for count in range(1, len(done) + 1):
        place = next(places)
        fault = FileFault("unnamed", f"{place}/*", count=count, rank=-1)
        assert run_forked(partial(load, place), [fault]) == -signal.SIGKILL
        assert newest_step(place) == 2


def test_the_planted_bug_of_a_file_that_is_not_synced_is_found(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The crash tests can fail: without the sync before the rename, a power cut leaves a checkpoint in name only."""

    def write_unsynced(path: Path, chunks: Any) -> dict[str, Any]:
        data = b"".join(bytes(chunk) for chunk in chunks)
        path.write_bytes(data)
        return {"bytes": len(data), "blake2b": checkpoint.digest(data)}

    monkeypatch.setattr(stores, "write_synced", write_unsynced)
    monkeypatch.setattr(snapshots, "write_synced", write_unsynced)
    fault = FileFault("unsynced", f"{prepared}/*/.trash*", count=1, rank=-1)
    assert run_forked(lambda: save(prepared), [fault]) == -signal.SIGKILL
    newest_step(prepared)
    assert list(prepared.glob("checkpoints/corrupt-*"))


# -- a disk that refuses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_a_disk_that_refuses_any_operation_of_a_save_damages_nothing(prepared: Path, error: Any) -> None:
    def refused(place: Path) -> None:
        mine = store(place, SECOND)
        mine.load_latest()
        with pytest.raises(SaveError, match=r"cannot save a checkpoint of step 4 in .*checkpoints"):
            mine.publish(snapshot(4))
        assert not list(place.glob("checkpoints/.tmp-step*"))
        mine.publish(snapshot(5))  # the disk is well again

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


def test_a_disk_that_refuses_to_remove_the_old_does_not_fail_the_save(prepared: Path) -> None:
    fault = FileFault("EIO", f"{prepared}/*/step-000000000001*", operation="rename", rank=-1, times=0)
    assert run_forked(lambda: save(prepared), [fault]) == SURVIVED
    assert newest_step(prepared) == 4


def test_a_file_size_limit_is_a_refusal_too(tmp_path: Path) -> None:
    """The kernel itself refuses here, in the middle of a write."""
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
    """The name was there when the sync failed, so the next save of that step needs another."""

    def twice() -> None:
        mine = store(tmp_path)
        with pytest.raises(SaveError):
            mine.publish(snapshot(4))
        mine.publish(snapshot(4))

    fault = FileFault("EIO", f"{tmp_path}/checkpoints", operation="fsync folder", rank=-1)
    assert run_forked(twice, [fault]) == SURVIVED
    assert newest_step(tmp_path) == 4


def test_a_rename_that_was_done_but_reported_as_refused_is_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system that repeats a request whose answer was lost finds no source any more."""
    rename = os.rename

    def answer_lost(source: Path, target: Path) -> None:
        rename(source, target)
        raise FileNotFoundError(source)

    monkeypatch.setattr(os, "rename", answer_lost)
    store(tmp_path).publish(snapshot(1))
    monkeypatch.undo()
    assert newest_step(tmp_path) == 1


# -- retention ----------------------------------------------------------------------------------------------------


def test_the_last_two_remain(tmp_path: Path) -> None:
    mine = store(tmp_path)
    for step in range(1, 6):
        mine.publish(snapshot(step))
    assert [int(path.name[5:17]) for path in published(tmp_path / "checkpoints")] == [4, 5]


def test_one_of_every_period_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    mine = store(tmp_path, keep_last=1, keep_every_h=2.0)
    for step in range(8):
        now = 1_000_800.0 + 3600 * step
        mine.publish(snapshot(step))
    assert [int(path.name[5:17]) for path in published(tmp_path / "checkpoints")] == [0, 2, 4, 6, 7]


def test_retention_leaves_what_it_does_not_know(tmp_path: Path) -> None:
    mine = store(tmp_path, keep_last=1)
    kept = [tmp_path / "checkpoints" / name for name in ("corrupt-step-000000000001.00000.11111111", "notes.txt")]
    for path in kept:
        path.mkdir()
    for step in (1, 2):
        mine.publish(snapshot(step))
    assert all(path.exists() for path in kept)


# -- fencing ------------------------------------------------------------------------------------------------------


def test_a_late_owner_cannot_publish(tmp_path: Path) -> None:
    owners = [FIRST]
    mine = store(tmp_path, may_publish=lambda: owners[-1] == FIRST)
    mine.publish(snapshot(1))
    owners.append(SECOND)
    with pytest.raises(WorkspaceBusy, match="another attempt took over"):
        mine.publish(snapshot(2))
    assert newest_step(tmp_path) == 1
    assert not list(tmp_path.glob("checkpoints/.tmp-*"))


def test_a_late_owner_removes_nothing_of_its_successor(tmp_path: Path) -> None:
    late = store(tmp_path, may_publish=lambda: False)
    (tmp_path / "checkpoints" / ".tmp-step-of-the-successor").mkdir()
    with pytest.raises(WorkspaceBusy):
        late.remove_leftovers()
    assert (tmp_path / "checkpoints" / ".tmp-step-of-the-successor").exists()


def test_what_cannot_be_saved_is_refused_as_such(tmp_path: Path) -> None:
    complex_weights = {"model": {"w": torch.zeros(2, dtype=torch.complex64)}}
    with pytest.raises(SaveError, match=r"model.*w.*complex64"):
        store(tmp_path).publish(Snapshot(1, complex_weights, {}))
    assert not list((tmp_path / "checkpoints").iterdir())


# -- reading the format -----------------------------------------------------------------------------------------


def test_a_header_that_does_not_describe_its_file_is_an_error_and_takes_no_memory() -> None:
    """True for any damaged byte, since a file is parsed before its digest is known."""
    content = b"".join(map(bytes, safetensors.encode("g", {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)})))
    header = 8 + int.from_bytes(content[:8], "little")
    read = 0
    for place in range(header):
        for bit in (1, 4, 16, 64):
            damaged = bytearray(content)
            damaged[place] ^= bit
            try:
                tensors = safetensors.read(io.BytesIO(bytes(damaged)), len(damaged))
            except ValueError:
                continue
            read += 1  # damage to a name, or to a shape with the same product
            assert sum(tensor.nbytes for tensor in tensors.values()) == len(content) - header
    assert read < header


def test_a_shape_that_no_tensor_can_have_is_an_error_of_the_header() -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}).encode()
    content = len(header).to_bytes(8, "little") + header
    with pytest.raises(ValueError, match="header is damaged"):
        safetensors.read(io.BytesIO(content), len(content))


@pytest.mark.parametrize("end", [0, 4, 20, -1])
def test_a_file_of_tensors_that_ends_early_is_an_error(end: int) -> None:
    content = b"".join(map(bytes, safetensors.encode("g", {"a": torch.arange(6.0)})))[:end]
    for size in (len(content), len(content) + 9):
        with pytest.raises(ValueError, match="ends|ended|longer|belong"):
            safetensors.read(io.BytesIO(content), size)


def test_a_file_that_is_whole_but_holds_no_tensors_is_set_aside(tmp_path: Path) -> None:
    mine = store(tmp_path, keep_last=2)
    mine.publish(snapshot(1))
    path = mine.publish(snapshot(2)).path
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest.pop("digest")
    content = b"no tensors at all"
    (path / "model.safetensors").write_bytes(content)
    manifest["files"]["model.safetensors"] = {"bytes": len(content), "blake2b": checkpoint.digest(content)}
    manifest["digest"] = checkpoint.digest(compact_json(manifest))
    (path / "manifest.json").write_bytes(compact_json(manifest))
    assert newest_step(tmp_path) == 1
    assert list(tmp_path.glob("checkpoints/corrupt-*"))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/dev/zero", "a/b.safetensors", "", ".", "..", "a\n"])
def test_a_manifest_names_files_of_its_own_folder_only(name: str, tmp_path: Path) -> None:
    path = store(tmp_path).publish(snapshot(1)).path
    shutil.copy(path / "model.safetensors", path.parent / "secret.safetensors")
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"][name] = manifest["files"]["model.safetensors"]
    write_manifest(path, manifest)
    with pytest.raises(CheckpointError, match="files in its own folder"):
        checkpoint.read_manifest(path)


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Whoever can write there can also make the digest fit."""
    del manifest["digest"]
    manifest["digest"] = checkpoint.digest(compact_json(manifest))
    (path / "manifest.json").write_bytes(compact_json(manifest))


@pytest.mark.parametrize("entry", [None, {}, {"bytes": "8", "blake2b": ""}, {"bytes": 8, "blake2b": None}, []])
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
    """A device never ends, and nobody writes to the pipe: reading either would not come back."""
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
