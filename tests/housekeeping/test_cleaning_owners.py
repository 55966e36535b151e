"""`everstep clean` leaves what a live process uses, writes or removes."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.housekeeping.conftest import clean, data_of, forget, listed, load, rest, tree
from tests.plugins.paced import HURRY
from tests.support.crash import SURVIVED, fork, wait
from tests.support.project import FINISHED, Project, copy
from tests.support.stored import row, start
from tests.support.warm import until
from workflow_lib import checkpoint
from workflow_lib.data import Manifest, preparation
from workflow_lib.files import write_atomic
from workflow_lib.housekeeping import cleaning
from workflow_lib.processes import writer_mark
from workflow_lib.store.final_checkpoint import find_final_checkpoint
from workflow_lib.store.lease import Lease


def test_an_unfinished_run_that_a_plan_names_is_left_alone(killed: Project) -> None:
    rest(killed.folder / "work")
    before = tree(killed.folder)
    assert listed(killed) == {}
    clean(killed)
    assert tree(killed.folder) == before


def test_damaged_checkpoints_of_an_unfinished_run_stay(killed: Project) -> None:
    for path in checkpoint.published(killed.checkpoints):
        path.rename(path.with_name(f"corrupt-{path.name}"))
    rest(killed.folder / "work")
    assert listed(killed) == {}


def test_a_file_being_written_stays_regardless_of_clocks(finished: Project) -> None:
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
    rest(finished.folder)  # like on a host whose clock is a month ahead
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


def test_a_removal_in_progress_is_left_to_its_process(finished: Project) -> None:
    places = [f"{place}/.trash-{mark}{'0' * 12}" for mark in (writer_mark(), "f" * 20) for place in ("data", "packs")]
    for place in places:
        (finished.folder / "work" / place).mkdir(parents=True)
    rest(finished.folder / "work")
    assert [place for place in places if place in listed(finished)] == places[2:]


def test_a_workspace_with_a_live_owner_is_not_changed(prepared: Project, tmp_path: Path) -> None:
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


def test_a_finished_run_stays_while_its_results_are_written(finished: Project) -> None:
    """An attempt is suspended just before it writes the results that name the run."""
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


def test_a_training_that_waits_for_a_clean_starts_over(finished: Project) -> None:
    """The clean owns the run when the training starts, and removes it."""
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
        reasons = dict(cleaning.clean(items))
    assert all(reasons.values())
    assert find_final_checkpoint(finished.workspace) is not None
    assert before.items() <= tree(data_of(finished)).items()


def test_a_run_and_data_that_a_result_names_after_the_listing_stay(finished: Project) -> None:
    kept = finished.folder / "kept"
    shutil.copytree(finished.folder / "results", kept)
    forget(finished)
    items = cleaning.removable(finished.folder / "work", finished.folder / "results")
    kept.rename(finished.folder / "results")
    reasons = dict(cleaning.clean(items))
    assert len(reasons) == 2
    assert all(why is not None and "came into use" in why for why in reasons.values())
    assert find_final_checkpoint(finished.workspace) is not None
    assert (data_of(finished) / "manifest.json").exists()


def test_data_prepared_a_moment_ago_stays_until_a_result_names_it(
    finished: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clean runs after the data is complete and before its manifest is in the results."""
    experiment = load(finished)
    shutil.rmtree(finished.workspace.parent)
    (manifest,) = finished.folder.glob("results/*/data/*.json")
    manifest.unlink()
    reasons: list[str | None] = []
    save = Manifest.save

    def clean_first(self: Manifest, path: Path) -> None:
        if path == manifest:
            rest(finished.folder / "work")
            items = cleaning.removable(finished.folder / "work", finished.folder / "results")
            reasons.extend(why for _, why in cleaning.clean(items))
        save(self, path)

    monkeypatch.setattr(Manifest, "save", clean_first)
    monkeypatch.chdir(finished.folder)
    preparation.preprocess(experiment, manifest.stem, finished.folder / "work", manifest)
    assert reasons == []
    assert Manifest.load(manifest).store == data_of(finished).name
    assert list(data_of(finished).glob("*.safetensors"))
    assert listed(finished) == {}


def test_data_being_prepared_stays(killed: Project) -> None:
    from filelock import FileLock

    shutil.rmtree(killed.workspace)
    forget(killed)
    with FileLock(data_of(killed) / ".lock"):  # by Everstep 0.1
        assert listed(killed) == {}
    with preparation._lock(data_of(killed)):
        assert listed(killed) == {}
    assert list(listed(killed)) == [f"data/{data_of(killed).name}"]
    (data_of(killed) / "manifest.json").unlink()  # like after an interrupted preparation
    assert listed(killed) == {}
    rest(killed.folder / "work")
    assert list(listed(killed).values()) == ["interrupted preparation of data"]


def test_a_running_proof_stays(killed: Project) -> None:
    proof = killed.folder / "work" / "prove" / "0123456789ab"
    (proof / "straight").mkdir(parents=True)
    with Lease.acquire(proof, "prove", timeout_s=60.0):
        assert listed(killed) == {}
    assert list(listed(killed)) == ["prove/0123456789ab"]
