"""What a clean removes, and above all what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import chdir, suppress
from pathlib import Path

import psutil
import pytest

from tests.plugins.paced import HURRY
from tests.store.conftest import row, start
from tests.support import faults
from tests.support.crash import SURVIVED, fork, operations, run_forked, wait
from tests.support.project import FINISHED, NAME, Project, copy
from tests.support.warm import until
from workflow_lib import __main__ as verbs
from workflow_lib import checkpoint, config, plan
from workflow_lib.data import Manifest, Shard, preparation
from workflow_lib.errors import UserError
from workflow_lib.files import write_atomic
from workflow_lib.processes import writer_mark
from workflow_lib.store import cleaning, clones, status
from workflow_lib.store.lease import Lease
from workflow_lib.store.runs import find_sealed

LONG_AGO = time.time() - 30 * 86400


def listed(project: Project) -> dict[str, str]:
    """What would be removed, by its path in the store, and why."""
    work = project.folder / "work"
    items = cleaning.removable(work, project.folder / "results")
    assert all(item.bytes == size_of(item.path) for item in items)
    return {str(item.path.relative_to(work)): item.why for item in items}


def clean(project: Project) -> None:
    """What is listed is removed."""
    for item, why in cleaning.clean(cleaning.removable(project.folder / "work", project.folder / "results")):
        assert why is None, (item, why)


def size_of(path: Path) -> int:
    return sum(one.lstat().st_size for one in (path, *path.rglob("*")) if one.is_symlink() or one.is_file())


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below the folder, with the content of the files."""
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() and not p.is_symlink() else None for p in paths}


def rest(path: Path) -> None:
    """Nothing was written there for a month."""
    for one in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):  # of a save that a training has just finished
            os.utime(one, (LONG_AGO, LONG_AGO), follow_symlinks=False)


def forget(project: Project) -> Project:
    """No result names the run or its data any more, and nothing happened in the store for a month."""
    shutil.rmtree(project.folder / "results")
    rest(project.folder / "work")
    return project


def run_of(project: Project) -> str:
    return str(project.workspace.relative_to(project.folder / "work"))


def data_of(project: Project) -> Path:
    (store,) = (project.folder / "work" / "data").glob("*")
    return store


def test_of_a_finished_run_only_the_older_checkpoint_goes(finished: Project) -> None:
    rest(finished.folder / "work")
    older, newest = checkpoint.published(finished.checkpoints)
    assert listed(finished) == {str(older.relative_to(finished.folder / "work")): "older checkpoint of a finished run"}
    clean(finished)
    assert checkpoint.published(finished.checkpoints) == [newest]
    sealed = find_sealed(finished.workspace)
    assert sealed is not None
    assert listed(finished) == {}
    before = len(row(finished)["attempts"])
    shutil.rmtree(finished.output.parent)
    finished.finish()
    assert finished.output.exists()
    assert len(row(finished)["attempts"]) == before


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


def test_checkpoints_that_were_to_be_kept_are_kept(finished: Project) -> None:
    (snapshot,) = make_snapshots(finished)
    content = json.loads(snapshot.read_text())
    content["checkpoint"]["keep_every_h"] = 1.0
    snapshot.write_text(json.dumps(content))
    assert listed(finished) == {}


def load(project: Project) -> config.Experiment:
    """The project's experiment."""
    with chdir(project.folder):
        return config.load([Path("experiment.yaml")])


def make_snapshots(project: Project) -> list[Path]:
    """The project's experiment as a pipeline freezes it."""
    return [config.snapshot(load(project), project.folder / "work")]


def test_an_unfinished_run_that_a_plan_names_is_left_alone(killed: Project) -> None:
    rest(killed.folder / "work")
    before = tree(killed.folder)
    assert listed(killed) == {}
    clean(killed)
    assert tree(killed.folder) == before


def test_what_keeps_an_unfinished_run_from_beginning_again_stays(killed: Project) -> None:
    for path in checkpoint.published(killed.checkpoints):
        path.rename(path.with_name(f"corrupt-{path.name}"))
    rest(killed.folder / "work")
    assert listed(killed) == {}


def test_a_save_that_was_cut_off_goes(killed: Project) -> None:
    (killed.checkpoints / ".tmp-step-000000000009.00009.0123abcd").mkdir()
    (killed.checkpoints / ".tmp-step-000000000009.00009.0123abcd" / "model.safetensors").write_bytes(b"12345")
    assert list(listed(killed).values()) == ["save that was cut off"]
    step = killed.newest_step()
    clean(killed)
    assert listed(killed) == {}
    assert killed.newest_step() == step > 0
    killed.finish()


def test_files_whose_writer_was_killed_go(finished: Project) -> None:
    clean(finished)
    work, results = finished.folder / "work", finished.folder / "results"
    for place in (finished.workspace.parent, finished.workspace, data_of(finished), results / NAME / "data"):
        fault = faults.FileFault("before", operation="rename", rank=-1)
        assert run_forked(lambda path=place / "x.json": write_atomic(path, "x"), [fault]) == -signal.SIGKILL
    lease = faults.FileFault("before", operation="link", rank=-1)
    assert run_forked(lambda: Lease.acquire(finished.workspace, "a", timeout_s=1), [lease]) == -signal.SIGKILL
    cut = {path for folder in (work, results) for path in folder.rglob(".*.tmp")}
    assert len(cut) == 5
    kept = finished.output.with_name(".notes.tmp")
    kept.touch()
    rest(kept)
    assert {item.path for item in cleaning.removable(work, results)} == cut
    clean(finished)
    assert not any(path.exists() for path in cut)
    assert kept.exists()
    assert find_sealed(finished.workspace) is not None


def test_a_file_that_is_being_written_stays_whatever_the_clocks_say(finished: Project) -> None:
    clean(finished)
    path = finished.folder / "work" / "x.json"
    begun, go = path.with_name("begun"), path.with_name("go")

    def write_slowly() -> None:
        def pieces() -> Iterator[bytes]:
            yield b"x"
            begun.touch()
            until(go.exists, "the others")

        write_atomic(path, pieces())  # type: ignore[arg-type]  # any iterable will do

    pid = fork(write_slowly)
    until(begun.exists, "the first byte")
    rest(finished.folder)  # as seen by a host whose clock is a month ahead
    assert listed(finished) == {}
    go.touch()
    assert wait(pid) == SURVIVED
    assert path.read_bytes() == b"x"


def test_a_file_that_another_host_may_be_writing_stays_for_a_week(finished: Project) -> None:
    clean(finished)
    path = finished.folder / "work" / f".x.json.{'f' * 32}.tmp"
    path.touch()
    os.utime(path, (time.time() - 6 * 86400,) * 2)
    assert listed(finished) == {}
    rest(path)
    assert list(listed(finished)) == [path.name]


def test_a_removal_that_is_going_on_is_left_to_who_does_it(finished: Project) -> None:
    mine, cut = (data_of(finished).parent / f".trash-{mark}{'0' * 12}" for mark in (writer_mark(), "f" * 20))
    for trash in (mine, cut):
        trash.mkdir()
    rest(finished.folder / "work")
    assert f"data/{mine.name}" not in listed(finished)
    assert f"data/{cut.name}" in listed(finished)


def test_a_run_that_no_result_names_goes_with_its_data(finished: Project) -> None:
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


def test_data_stays_while_a_run_that_stays_was_trained_on_it(killed: Project) -> None:
    forget(killed)
    os.utime(killed.workspace / "events.jsonl")  # it may be waiting in a queue
    assert listed(killed) == {}
    rest(killed.folder / "work")
    assert set(listed(killed)) == {run_of(killed), f"data/{data_of(killed).name}"}


@pytest.mark.parametrize("name", ["train.json", "tune"])
def test_a_result_of_an_earlier_plan_or_of_a_study_keeps_its_run(finished: Project, name: str) -> None:
    (plan,) = finished.folder.glob("results/*/plan.json")
    plan.write_text(json.dumps({"runs": []}))
    if name == "tune":
        suggestion = finished.folder / "results" / NAME / "tune" / "study" / "suggest-0000.json"
        suggestion.parent.mkdir(parents=True)
        suggestion.write_text(json.dumps({"run": {"digest": finished.workspace.parent.name}}))
        finished.output.unlink()
    rest(finished.folder / "work")
    assert run_of(finished) not in listed(finished)


def test_what_a_live_owner_holds_is_never_touched(prepared: Project, tmp_path: Path) -> None:
    project = copy(prepared, tmp_path / "live")
    pid = start(project)
    until(lambda: row(project)["step"] >= 1, "a step")
    results = project.folder / "results"
    results.rename(project.folder / "elsewhere")  # nothing names the run now
    (project.checkpoints / ".tmp-being-written").mkdir()
    rest(project.folder / "work")
    assert listed(project) == {}
    items = [cleaning.Removable(project.workspace, "", workspace=project.workspace)]  # begun after the listing
    ((_, why),) = cleaning.clean(items)
    assert why is not None
    assert f"pid {pid}" in why
    (project.folder / "elsewhere").rename(results)
    (project.checkpoints / ".tmp-being-written").rmdir()
    (project.folder / HURRY).touch()
    assert project.warm.wait(pid) == FINISHED


def linked(store: Path) -> Path:
    """Other data, which took over the shards of this one."""
    other = store.with_name("f" * 32)
    other.mkdir()
    for shard in store.glob("*.safetensors"):
        os.link(shard, other / shard.name)
    manifest = json.loads((store / "manifest.json").read_text())
    del manifest["checksum"]
    (other / "manifest.json").write_text(json.dumps(manifest | {"digest": "f" * 32}))
    return other


def occupied(folder: Path) -> int:
    """Bytes of all files below the folder, however many names they have."""
    files = [path.lstat() for path in folder.rglob("*") if not path.is_dir()]
    return sum({(one.st_dev, one.st_ino): one.st_size for one in files}.values())


def test_shards_that_two_data_sets_share_are_freed_once(finished: Project) -> None:
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


def test_shards_that_stay_elsewhere_free_nothing(finished: Project) -> None:
    other = linked(data_of(finished))
    rest(other)
    before, items = occupied(other.parent), cleaning.removable(finished.folder / "work", finished.folder / "results")
    (item,) = (item for item in items if item.path == other)
    clean(finished)
    assert not other.exists()
    assert data_of(finished).exists()
    assert item.bytes == before - occupied(other.parent) > 0


def test_a_finished_run_that_is_handed_out_stays(finished: Project) -> None:
    """Another experiment needs it, and is stopped just before its results name the run."""
    results = finished.output.parent
    shutil.rmtree(results)
    pid = finished.start({"point": "outputs", "signal": "SIGSTOP", "rank": -1})
    until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "the launcher to stop")
    os.rename(finished.folder / "results", finished.folder / "elsewhere")
    rest(finished.folder / "work")
    assert listed(finished) == {}
    (finished.folder / "elsewhere").rename(finished.folder / "results")
    os.kill(pid, signal.SIGCONT)
    assert finished.warm.wait(pid) == FINISHED
    assert finished.output.exists()


def test_a_training_that_waited_for_a_clean_begins_anew(finished: Project) -> None:
    """The clean holds the run when the training comes, and removes it."""
    with Lease.acquire(finished.workspace, "clean", timeout_s=60.0):
        begun = len(finished.log)
        shutil.rmtree(finished.output.parent)
        pid = finished.start()
        until(lambda: "held by attempt clean" in finished.log[begun:], "the training to wait")
        shutil.rmtree(finished.workspace)
    assert finished.warm.wait(pid) == FINISHED
    assert finished.output.exists()


def test_data_stays_when_its_run_came_into_use_after_the_listing(finished: Project) -> None:
    forget(finished)
    items = cleaning.removable(finished.folder / "work", finished.folder / "results")
    assert {item.path for item in items} == {finished.workspace, data_of(finished)}
    before = tree(data_of(finished))
    with Lease.acquire(finished.workspace, "training", timeout_s=60):
        told = dict(cleaning.clean(items))
    assert all(told.values())
    assert find_sealed(finished.workspace) is not None
    assert before.items() <= tree(data_of(finished)).items()


def test_a_run_and_data_that_a_result_names_after_the_listing_stay(finished: Project) -> None:
    kept = finished.folder / "kept"
    shutil.copytree(finished.folder / "results", kept)
    forget(finished)
    items = cleaning.removable(finished.folder / "work", finished.folder / "results")
    kept.rename(finished.folder / "results")
    told = dict(cleaning.clean(items))
    assert len(told) == 2
    assert all(why is not None and "came into use" in why for why in told.values())
    assert find_sealed(finished.workspace) is not None
    assert (data_of(finished) / "manifest.json").exists()


def test_data_prepared_a_moment_ago_stays_until_a_result_names_it(
    finished: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clean at the worst moment: the data is whole, and its manifest not yet in the results."""
    experiment = load(finished)
    shutil.rmtree(finished.workspace.parent)
    (manifest,) = finished.folder.glob("results/*/data/*.json")
    manifest.unlink()
    told: list[str | None] = []
    save = Manifest.save

    def clean_first(self: Manifest, path: Path) -> None:
        if path == manifest:
            rest(finished.folder / "work")
            items = cleaning.removable(finished.folder / "work", finished.folder / "results")
            told.extend(why for _, why in cleaning.clean(items))
        save(self, path)

    monkeypatch.setattr(Manifest, "save", clean_first)
    monkeypatch.chdir(finished.folder)
    preparation.preprocess(experiment, manifest.stem, finished.folder / "work", manifest)
    assert told == []
    assert Manifest.load(manifest).store == data_of(finished).name
    assert list(data_of(finished).glob("*.safetensors"))
    assert listed(finished) == {}


def test_what_another_clone_needs_stays(finished: Project, tmp_path: Path) -> None:
    """Its work/ is a link to the store of the first."""
    other = tmp_path / "other"
    (finished.folder / "results").rename(tmp_path / "results of the other")
    other.mkdir()
    (tmp_path / "results of the other").rename(other / "results")
    (other / "work").symlink_to(finished.folder / "work")
    clones.note(other / "work", other / "results")
    clones.note(finished.folder / "work", finished.folder / "results")
    rest(finished.folder / "work")
    assert list(listed(finished).values()) == ["older checkpoint of a finished run"]
    other.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"{other}/results.* is missing.* delete .*work/clones/\w+\.json"):
        listed(finished)
    shutil.rmtree(tmp_path / "elsewhere" / "results")
    (tmp_path / "elsewhere").rename(other)
    assert run_of(finished) in listed(finished)


def test_a_project_that_was_moved_is_cleaned_as_before(finished: Project, tmp_path: Path) -> None:
    clones.note(finished.folder / "work", finished.folder / "results")
    finished.folder.rename(tmp_path / "moved")
    rest(tmp_path / "moved" / "work")
    items = cleaning.removable(tmp_path / "moved" / "work", tmp_path / "moved" / "results")
    assert [item.why for item in items] == ["older checkpoint of a finished run"]


def test_whoever_writes_a_plan_says_where_its_results_lie(finished: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.folder)
    experiment = load(finished)
    work = finished.folder / "store"
    plan.write_plan(experiment, work, finished.folder / "results" / experiment.name / "plan.json")
    assert clones.results_of_all(work, finished.folder / "none") == [finished.folder / "results"]


@pytest.mark.parametrize("made_from", ["", config.digest([], "everstep-shard")])
def test_every_shard_is_known_by_its_name(made_from: str) -> None:
    shard = Shard(split="val", start=0, stop=10, digest="", made_from=made_from)
    assert cleaning.OF_DATA.fullmatch(shard.name)


def test_data_that_is_being_prepared_is_left(killed: Project) -> None:
    from filelock import FileLock

    shutil.rmtree(killed.workspace)
    forget(killed)
    with FileLock(data_of(killed) / ".lock"):  # by Everstep 0.1
        assert listed(killed) == {}
    with preparation._locked(data_of(killed)):
        assert listed(killed) == {}
    assert list(listed(killed)) == [f"data/{data_of(killed).name}"]
    (data_of(killed) / "manifest.json").unlink()  # a preparation that was cut off now, or long ago
    assert listed(killed) == {}
    rest(killed.folder / "work")
    assert list(listed(killed).values()) == ["preparation of data that was cut off"]


def test_the_persons_files_stay(finished: Project) -> None:
    work = finished.folder / "work"
    mine = ["notes.txt", "data/my-images/cat.png", "data/readme", "runs/backup/run/attempts/a.json", "prove/mine/x"]
    mine += ["experiments/draft.yaml", "runs/" + "0" * 32 + "/thesis.tex"]
    for name in mine:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(name)
    forget(finished)
    clean(finished)
    assert all((work / name).read_text() == name for name in mine)
    assert listed(finished) == {}


def test_a_folder_in_which_a_person_keeps_something_stays_whole(finished: Project) -> None:
    (finished.workspace / "thoughts.md").write_text("mine")
    (data_of(finished) / "labels.csv").write_text("mine")
    forget(finished)
    before = tree(finished.workspace) | tree(data_of(finished))
    clean(finished)
    assert tree(finished.workspace) | tree(data_of(finished)) == before


def test_no_link_is_followed(finished: Project, tmp_path: Path) -> None:
    outside = tmp_path / "other disk"
    outside.mkdir()
    work, workspace, data = finished.folder / "work", finished.workspace, data_of(finished)
    for path in (workspace.parent, data):
        path.rename(outside / path.name)
        path.symlink_to(outside / path.name)
    (outside / "precious").mkdir()
    (outside / "precious" / "thesis.tex").write_text("mine")
    links = ["data/" + "a" * 32, "runs/" + "b" * 32, "prove/" + "c" * 12, "data/.trash-1", "experiments/x.json"]
    for name in links:
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).symlink_to(outside / "precious")
    forget(finished)
    rest(outside)
    before = tree(outside)
    assert listed(finished) == {}
    clean(finished)
    assert tree(outside) == before
    assert all((work / name).is_symlink() for name in links)


def test_a_link_inside_what_goes_is_removed_and_not_its_target(killed: Project, tmp_path: Path) -> None:
    """A proof's folder links to its data."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file").write_text("mine")
    left = killed.folder / "work" / "prove" / "0123456789ab"
    left.mkdir(parents=True)
    (left / "data").symlink_to(tmp_path / "target")
    clean(killed)
    assert not left.exists()
    assert (tmp_path / "target" / "file").read_text() == "mine"


def test_a_store_that_is_a_link_itself_is_cleaned(finished: Project, tmp_path: Path) -> None:
    forget(finished)
    (finished.folder / "work").rename(tmp_path / "scratch")
    (finished.folder / "work").symlink_to(tmp_path / "scratch")
    assert len(listed(finished)) == 2
    clean(finished)
    assert listed(finished) == {}


def test_a_proof_that_is_running_is_left(killed: Project) -> None:
    proof = killed.folder / "work" / "prove" / "0123456789ab"
    (proof / "straight").mkdir(parents=True)
    with Lease.acquire(proof, "prove", timeout_s=60.0):
        assert listed(killed) == {}
    assert list(listed(killed)) == ["prove/0123456789ab"]


def test_an_experiment_without_results_goes_when_it_is_old(finished: Project) -> None:
    (snapshot,) = make_snapshots(finished)
    rest(snapshot)
    assert snapshot.name not in str(listed(finished))
    forget(finished)
    assert f"experiments/{snapshot.name}" in listed(finished)
    os.utime(snapshot)
    assert f"experiments/{snapshot.name}" not in listed(finished)


def places(folder: Path) -> Iterator[Path]:
    """Folders that look like whole workspaces or data."""
    yield from folder.glob("work/runs/*/[0-9a-f]*")
    yield from folder.glob("work/data/[0-9a-f]*")


def test_a_clean_that_is_cut_off_anywhere_can_be_repeated(finished: Project, tmp_path: Path) -> None:
    """Killed at each of its operations on files."""
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


def test_a_result_that_cannot_be_read_stops_everything(
    finished: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (plan,) = finished.folder.glob("results/*/plan.json")
    plan.write_text(plan.read_text()[:40])
    before = tree(finished.folder)
    monkeypatch.chdir(finished.folder)
    assert verbs.main(["clean", "--yes"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert f"results/{NAME}/plan.json" in told.err
    assert "nothing was removed" in told.err
    assert tree(finished.folder) == before


def test_nothing_is_removed_without_yes(
    finished: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(finished)
    before = tree(finished.folder)
    size = size_of(finished.workspace) + size_of(data_of(finished))
    monkeypatch.chdir(finished.folder)
    assert verbs.main(["clean"]) == 0
    told = capsys.readouterr().out
    assert tree(finished.folder) == before
    assert f"{size / 1e6:.1f} MB in 2 places" in told
    assert "--yes" in told
    assert verbs.main(["clean", "--yes"]) == 0
    assert "removed 2 of 2 places" in capsys.readouterr().out
    assert verbs.main(["clean"]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_an_unknown_option_is_refused(finished: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.folder)
    with pytest.raises(SystemExit) as refused:
        verbs.main(["clean", "--all"])
    assert refused.value.code == 2
