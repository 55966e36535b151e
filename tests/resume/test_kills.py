"""Killed or stopped anywhere, any number of times, a run ends with the bits of an uninterrupted run.

One attempt takes about a second. ``scripts/chaos`` runs the whole matrix, one fault per run.
"""

from __future__ import annotations

import random
import shutil
from fnmatch import fnmatch
from typing import Any

import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import ACCUMULATED, AT_THE_END, IN_TRAINING, random_fault
from tests.support.project import FAILED, FINISHED, KILLED, PASS, STOPPED, TERMINATED, differences


def test_two_runs_without_a_fault_are_equal(fresh: Fresh, reference: Fresh) -> None:
    other = fresh()
    other.finish()
    assert differences(reference(), other) == []


@pytest.mark.parametrize(
    ("signal", "changes"), [("SIGKILL", None), ("SIGTERM", ACCUMULATED)], ids=["killed", "stopped"]
)
def test_a_run_interrupted_once_at_every_point_of_the_loop_is_exact(
    fresh: Fresh, reference: Fresh, signal: str, changes: Any
) -> None:
    run = fresh(changes)
    for place, number, rank in IN_TRAINING:
        code = run.attempt({"point": place, "count": number, "signal": signal, "rank": rank})
        if signal == "SIGTERM":
            assert code == (STOPPED if place != "attempt" else TERMINATED), place
        else:
            assert code == (KILLED if rank < 0 else FAILED), place
    assert run.verdict(reference(changes)) == PASS


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("place", AT_THE_END)
def test_a_run_interrupted_after_its_last_step_is_exact(
    fresh: Fresh, reference: Fresh, place: str, signal: str
) -> None:
    """The next attempt completes the final checkpoint or the outputs; a stop comes too late to have an effect."""
    run, rank = fresh(), AT_THE_END[place]
    code = run.attempt({"point": place, "signal": signal, "rank": rank})
    killed = KILLED if rank < 0 else FAILED
    assert code == (killed if signal == "SIGKILL" else FINISHED)
    assert run.verdict(reference()) == PASS


def test_a_chain_of_random_kills_in_one_run_is_exact(fresh: Fresh, reference: Fresh) -> None:
    changes = {"training": {"epochs": 5}, "checkpoint": {"interval_steps": 1}}
    run, dice = fresh(changes), random.Random(1)
    for _ in range(15):
        assert run.attempt(random_fault(dice)) in (FINISHED, FAILED, KILLED, STOPPED)
    assert run.verdict(reference(changes)) == PASS


@pytest.mark.parametrize(
    ("rank", "done"), [(0, 0), (0, 48), (-1, 48)], ids=["rank", "rank at the end", "launcher at the end"]
)
def test_power_cuts_at_successive_file_operations_of_one_run_change_no_bit(
    fresh: Fresh, reference: Fresh, rank: int, done: int
) -> None:
    """Loads, saves, retention, records and outputs: each attempt ends at a later operation than the one before."""
    run = fresh()
    if done:
        assert run.attempt({"point": "optimizer", "count": done, "signal": "SIGTERM"}) == STOPPED
    struck = 0
    for number, count in enumerate(range(1, 200, 5)):
        mode = ("before", "torn", "unsynced", "unnamed")[number % 4]
        fault = {"mode": mode, "path": f"{run.folder}/*", "count": count, "rank": rank, "target": "group"}
        if run.attempt(fault) == FINISHED:
            break
        assert run.codes[-1] == KILLED, f"{fault}:\n{run.log[-2000:]}"
        struck += 1
        if count > 60 and not done:
            break
    assert struck >= 5
    assert run.verdict(reference()) == PASS


def test_a_finished_run_whose_final_state_is_damaged_is_finished_again(fresh: Fresh, reference: Fresh) -> None:
    run = fresh()
    run.finish()
    weights = run.sealed().path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    earlier = run.newest_step()
    assert run.verdict(reference()) == PASS
    assert run.began_at() == [0, earlier]
    assert earlier > 0


def test_the_final_state_of_another_run_is_not_used(fresh: Fresh, reference: Fresh) -> None:
    other = reference({"training": {"epochs": 1}})
    run = fresh()
    assert run.attempt({"point": "fetch", "count": 12, "signal": "SIGTERM"}) == STOPPED
    stranger = other.sealed().path
    shutil.copytree(stranger, run.checkpoints / stranger.name)
    run.finish()
    assert differences(reference(), run) == []
    assert "belongs to another run" in run.log


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_a_disk_that_fails_for_a_while_causes_a_warning_and_changes_no_bit(
    fresh: Fresh, reference: Fresh, error: str
) -> None:
    longer = {"training": {"epochs": 20}}  # so that the disk works again before the last save, however slow it is
    run = fresh(longer)
    everything = {"mode": error, "path": f"{run.folder / 'work' / 'runs'}/*", "rank": 0, "count": 40, "times": 15}
    assert run.attempt(everything) == FINISHED
    assert "Training continues" in run.log
    assert run.verdict(reference(longer)) == PASS


@pytest.mark.parametrize("name", ["leases/000001.json", "attempts/*.json"])
def test_a_disk_that_is_full_at_the_start_is_reported_with_the_file(fresh: Fresh, reference: Fresh, name: str) -> None:
    run = fresh()
    folder = f"{run.folder / 'work' / 'runs'}/*/{name.partition('/')[0]}/*"
    assert run.attempt({"mode": "ENOSPC", "operation": "fsync", "path": folder, "rank": -1}) == FAILED
    said = [line for line in run.log.splitlines() if "No space left on device" in line]
    assert len(said) == 1
    assert said[0] == run.log.splitlines()[-1]
    assert fnmatch(
        said[0], f"everstep train: [[]Errno 28] No space left on device: 'work/runs/*/{name}'. The disk is full: *"
    )
    assert run.verdict(reference()) == PASS


def test_a_disk_that_fails_to_the_end_fails_the_run_and_leaves_the_last_good_state(
    fresh: Fresh, reference: Fresh
) -> None:
    run = fresh()
    assert run.attempt({"point": "fetch", "count": 12, "signal": "SIGTERM"}) == STOPPED
    saved = run.newest_step()
    full = {"mode": "ENOSPC", "operation": "open", "path": f"{run.checkpoints}/*", "rank": 0, "times": 0}
    assert run.attempt(full) == FAILED
    assert "cannot save a checkpoint of step 51" in run.log.splitlines()[-1]
    assert "No space left on device" in run.log.splitlines()[-1]
    assert run.newest_step() == saved == 12
    assert run.verdict(reference()) == PASS
