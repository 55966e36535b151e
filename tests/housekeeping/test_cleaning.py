"""`everstep clean` removes what no result and no owner needs, and can be interrupted anywhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.housekeeping.conftest import clean, data_of, forget, listed, load, rest, run_of, size_of, tree
from tests.support import faults
from tests.support.crash import operations, run_forked
from tests.support.project import NAME, Project, copy
from tests.support.stored import row
from workflow_lib import checkpoint, cli, config, plan
from workflow_lib.data import MappedFiles, mapped_files, part_digests
from workflow_lib.data.manifest import Shard
from workflow_lib.files import read_json, temporary_name, write_atomic, write_signed
from workflow_lib.housekeeping import cleaning, status
from workflow_lib.store import layout
from workflow_lib.store.final_checkpoint import find_final_checkpoint
from workflow_lib.store.lease import Lease


def test_only_the_older_checkpoint_of_a_finished_run_is_removed(finished: Project) -> None:
    rest(finished.folder / "work")
    older, newest = checkpoint.published(finished.checkpoints)
    assert listed(finished) == {str(older.relative_to(finished.folder / "work")): "older checkpoint of a finished run"}
    clean(finished)
    assert checkpoint.published(finished.checkpoints) == [newest]
    sealed = find_final_checkpoint(finished.workspace)
    assert sealed is not None
    assert listed(finished) == {}
    before = len(row(finished)["attempts"])
    shutil.rmtree(finished.output.parent)
    finished.finish()
    assert finished.output.exists()
    assert len(row(finished)["attempts"]) == before


def test_a_run_that_a_planned_run_starts_from_is_needed(finished: Project) -> None:
    forget(finished)
    assert run_of(finished) in listed(finished)
    first = [{"id": "pre-0123456789ab", "digest": layout.run_of(finished.workspace)}]
    content = {"experiment": "fine", "runs": [], "trained_first": first, "study": None}
    plan_file = finished.folder / "results" / "fine" / "plan.json"
    plan_file.parent.mkdir(parents=True)
    plan_file.write_text(json.dumps(content))
    assert run_of(finished) not in listed(finished)
    assert [found["run"] for found in status.runs(finished.folder / "work", plan_file.parents[1])] == [
        "pre-0123456789ab"
    ]


def test_the_older_checkpoint_stays_when_the_newest_is_damaged(finished: Project) -> None:
    older, newest = checkpoint.published(finished.checkpoints)
    damaged = newest / "model.safetensors"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    items = cleaning.removable(finished.folder / "work", finished.folder / "results")
    ((item, why),) = cleaning.clean(items)
    assert item.path == older
    assert why is not None
    assert "damaged" in why
    assert checkpoint.published(finished.checkpoints) == [older, newest]


def test_keep_every_h_keeps_the_older_checkpoints(finished: Project) -> None:
    (snapshot,) = make_snapshots(finished)
    content = json.loads(snapshot.read_text())
    content["checkpoint"]["keep_every_h"] = 1.0
    snapshot.write_text(json.dumps(content))
    assert listed(finished) == {}


def make_snapshots(project: Project) -> list[Path]:
    """Freeze the project's experiment as a pipeline does; return the files."""
    return [plan.freeze_experiment(load(project), project.folder / "work")]


def test_an_interrupted_save_is_removed(killed: Project) -> None:
    (killed.checkpoints / ".tmp-step-000000000009.00009.0123abcd").mkdir()
    (killed.checkpoints / ".tmp-step-000000000009.00009.0123abcd" / "model.safetensors").write_bytes(b"12345")
    assert list(listed(killed).values()) == ["interrupted save"]
    step = killed.newest_step()
    clean(killed)
    assert listed(killed) == {}
    assert killed.newest_step() == step > 0
    killed.finish()


def test_temporary_files_of_killed_writers_are_removed(finished: Project) -> None:
    clean(finished)
    work, results = finished.folder / "work", finished.folder / "results"
    for place in (finished.workspace.parent, finished.workspace, data_of(finished), results / NAME / "data"):
        fault = faults.FileFault("before", operation="rename", rank=-1)
        assert run_forked(lambda path=place / "x.json": write_atomic(path, "x"), [fault]) == -signal.SIGKILL
    lease = faults.FileFault("before", operation="link", rank=-1)
    assert run_forked(lambda: Lease.acquire(finished.workspace, "a", timeout_s=1), [lease]) == -signal.SIGKILL
    scratch = layout.pack_file(work, "0" * 12)
    assert run_forked(lambda: write_atomic(temporary_name(scratch) / "graphs" / "x", "x")) == 0
    temporary = {path for folder in (work, results) for path in folder.rglob(".*.tmp")}
    assert len(temporary) == 6
    kept = finished.output.with_name(".notes.tmp")
    kept.touch()
    rest(kept)
    assert {item.path for item in cleaning.removable(work, results)} == temporary
    clean(finished)
    assert not any(path.exists() for path in temporary)
    assert kept.exists()
    assert find_final_checkpoint(finished.workspace) is not None


def test_a_run_that_no_result_names_is_removed_with_its_data(finished: Project) -> None:
    forget(finished)
    assert listed(finished) == {
        run_of(finished): "run that no result names",
        f"data/{data_of(finished).name}": "data that no result names and no run uses",
    }
    config = finished.workspace.parent / "config.json"
    clean(finished)
    assert listed(finished) == {}
    assert not list(finished.folder.glob("work/data/*"))
    assert list(finished.folder.glob("work/runs/*/*")) == [config]
    assert status.runs(finished.folder / "work", finished.folder / "results") == []


def test_data_stays_while_a_run_that_was_trained_on_it_stays(killed: Project) -> None:
    forget(killed)
    os.utime(killed.workspace / "events.jsonl")  # it may be waiting in a queue
    assert listed(killed) == {}
    rest(killed.folder / "work")
    assert set(listed(killed)) == {run_of(killed), f"data/{data_of(killed).name}"}


@pytest.mark.parametrize("name", ["train.json", "tune"])
def test_a_run_stays_that_an_earlier_result_or_a_study_names(finished: Project, name: str) -> None:
    (plan,) = finished.folder.glob("results/*/plan.json")
    plan.write_text(json.dumps({"runs": []}))
    if name == "tune":
        suggestion = finished.folder / "results" / NAME / "tune" / "study" / "suggest-0000.json"
        suggestion.parent.mkdir(parents=True)
        suggestion.write_text(json.dumps({"run": {"digest": finished.workspace.parent.name}}))
        finished.output.unlink()
    rest(finished.folder / "work")
    assert run_of(finished) not in listed(finished)


def linked(store: Path) -> Path:
    """Create another data set with hard links to the shards of this one."""
    other = store.with_name("f" * 32)
    other.mkdir()
    for shard in store.glob("*.safetensors"):
        os.link(shard, other / shard.name)
    manifest = json.loads((store / "manifest.json").read_text())
    del manifest["checksum"]
    (other / "manifest.json").write_text(json.dumps(manifest | {"digest": "f" * 32}))
    return other


def occupied(folder: Path) -> int:
    """Return the bytes of all files below the folder, each counted once."""
    files = [path.lstat() for path in folder.rglob("*") if not path.is_dir()]
    return sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values())


def test_shards_shared_by_two_data_sets_are_counted_once(finished: Project) -> None:
    store = data_of(finished)
    other = linked(store)
    forget(finished)
    work = finished.folder / "work"
    before, items = occupied(work), cleaning.removable(work, finished.folder / "results")
    assert [item.path for item in items if item.path.parent.name == "data"] == [store, other]
    clean(finished)
    assert not store.exists()
    assert not other.exists()
    assert sum(item.bytes for item in items) == before - occupied(work)


def test_shards_that_another_data_set_keeps_free_no_bytes(finished: Project) -> None:
    other = linked(data_of(finished))
    rest(other)
    before, items = occupied(other.parent), cleaning.removable(finished.folder / "work", finished.folder / "results")
    (item,) = (item for item in items if item.path == other)
    clean(finished)
    assert not other.exists()
    assert data_of(finished).exists()
    assert item.bytes == before - occupied(other.parent) > 0


@pytest.mark.parametrize("made_from", ["", config.digest([], "everstep-shard")])
def test_the_names_of_shards_match_the_pattern_of_the_store(made_from: str) -> None:
    shard = Shard(split="val", start=0, stop=10, digest="", made_from=made_from)
    assert layout.STORE_CONTENT.fullmatch(shard.name)


def test_an_old_experiment_without_results_is_removed(finished: Project) -> None:
    (snapshot,) = make_snapshots(finished)
    rest(snapshot)
    assert snapshot.name not in str(listed(finished))
    forget(finished)
    assert f"experiments/{snapshot.name}" in listed(finished)
    os.utime(snapshot)
    assert f"experiments/{snapshot.name}" not in listed(finished)


def places(folder: Path) -> Iterator[Path]:
    """Yield the folders whose names are those of workspaces or of data."""
    yield from folder.glob("work/runs/*/[0-9a-f]*")
    yield from folder.glob("work/data/[0-9a-f]*")


def test_a_clean_killed_at_any_operation_can_be_repeated(finished: Project, tmp_path: Path) -> None:
    """Every third file operation is tried."""
    forget(finished)
    whole = {path.name: tree(path) for path in places(finished.folder) if path.is_dir()}
    tried = copy(finished, tmp_path / "watched")
    happened = operations(lambda: clean(tried), str(tried.folder))
    assert any(operation.startswith("rename") for operation in happened)
    for count in range(1, len(happened) + 1, 3):
        project = copy(finished, tmp_path / f"cut-{count}")
        fault = faults.FileFault("before", path=f"{project.folder}/*", count=count, rank=-1)
        assert run_forked(lambda project=project: clean(project), [fault]) == -signal.SIGKILL
        for path in (path for path in places(project.folder) if path.is_dir()):
            left = tree(path)
            assert all(left[name] == content for name, content in whole[path.name].items())
        rest(project.folder / "work")
        clean(project)
        assert listed(project) == {}
        assert not [path for path in places(project.folder) if path.is_dir()]
        assert not list(project.folder.rglob(".trash*"))


def test_nothing_is_removed_if_a_result_cannot_be_read(
    finished: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (plan,) = finished.folder.glob("results/*/plan.json")
    plan.write_text(plan.read_text()[:40])
    before = tree(finished.folder)
    monkeypatch.chdir(finished.folder)
    assert cli.main(["clean", "--yes"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert f"results/{NAME}/plan.json" in printed.err
    assert "nothing was removed" in printed.err
    assert tree(finished.folder) == before


def test_nothing_is_removed_without_yes(
    finished: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(finished)
    before = tree(finished.folder)
    size = size_of(finished.workspace) + size_of(data_of(finished))
    monkeypatch.chdir(finished.folder)
    assert cli.main(["clean"]) == 0
    printed = capsys.readouterr().out
    assert tree(finished.folder) == before
    assert f"{size / 1e6:.1f} MB in 2 places" in printed
    assert "--yes" in printed
    assert cli.main(["clean", "--yes"]) == 0
    assert "removed 2 of 2 places" in capsys.readouterr().out
    assert cli.main(["clean"]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_an_unknown_option_is_rejected(finished: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.folder)
    with pytest.raises(SystemExit) as error:
        cli.main(["clean", "--all"])
    assert error.value.code == 2


def verified(folder: Path, content: bytes, work: Path) -> str:
    """Record the digests of a file's parts in the store, and return the digest of the file."""
    folder.mkdir(exist_ok=True)
    (folder / "x.bin").write_bytes(content)
    files = MappedFiles([folder / "x.bin"])
    ((digests),) = part_digests.part_digests(files, "made by", layout.parts_dir(work), threads=1)
    return part_digests.file_digest(len(content), digests)


def test_digests_of_parts_stay_as_long_as_data_has_the_file(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (mapped_files, part_digests):
        monkeypatch.setattr(module, "PART_BYTES", 1 << 10)
    monkeypatch.setattr(part_digests, "SEGMENT_PARTS", 2)
    work = finished.folder / "work"
    used = verified(tmp_path / "used", bytes(range(256)) * 20, work)
    (kept,) = layout.parts(work)
    assert len(list(kept.iterdir())) == 3
    assert part_digests.recorded_file(kept) == used
    verified(tmp_path / "unused", bytes(5000), work)
    unused = {f"parts/{path.name}" for path in layout.parts(work) if path != kept}
    path = data_of(finished) / "manifest.json"
    manifest = read_json(path) | {"sources": {"x.bin": used}}
    write_signed(path, manifest)
    assert not unused & set(listed(finished))  # a preparation may be verifying more files
    rest(work)
    assert unused <= set(listed(finished))
    assert f"parts/{kept.name}" not in listed(finished)
    items = [item for item in cleaning.removable(work, finished.folder / "results") if item.path.parent.name == "parts"]
    path.write_text("{")  # it is unknown which files are used
    assert not any(name.startswith("parts") for name in listed(finished))
    ((_, why),) = cleaning.clean(items)
    assert why is not None
    assert "came into use" in why
    write_signed(path, manifest)
    clean(finished)
    assert layout.parts(work) == [kept]
    (kept / "1.json").unlink()  # damaged, so that it is of no use
    rest(work)
    assert part_digests.recorded_file(kept) is None
    assert listed(finished) == {f"parts/{kept.name}": "digests of a file that no data uses"}
    (kept / "notes.txt").write_text("a user's")
    rest(work)
    assert listed(finished) == {}
