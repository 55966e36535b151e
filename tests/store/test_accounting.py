"""The cost of runs: computed from made-up records, and compared with the clock for real stops and kills."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.plugins.paced import COUNTED
from tests.support.project import FINISHED, KILLED, STOPPED, Project, copy
from tests.support.stored import row, start
from workflow_lib.housekeeping import status_table
from workflow_lib.slurm import job
from workflow_lib.store import accounting
from workflow_lib.store.accounting import Account, account_of
from workflow_lib.store.attempts import Attempt

HEARTBEAT_S = 0.5
ENDS_S = 1.0  # time for a process to end and for the test to notice
PAUSE_S = 0.05
ATTEMPT = Attempt("a", "host", "boot", 1, 0.0, None, None, "2026-01-01")


def attempt(first: int, last: int | None, seconds: float, *, ready_s: float | None = 1.0, why: str | None) -> Attempt:
    return replace(ATTEMPT, resumed_step=first, reached=last, seconds=seconds, ready_s=ready_s, reason=why)


def chain_of(project: Project, *deaths: tuple[int, str]) -> float:
    """Run attempts that get these signals after so many steps, then one that finishes; return their wall seconds."""
    used = 0.0
    for steps, name in deaths:
        began = time.monotonic()
        pid = start(project, PAUSE_S, {"point": "commit", "count": steps, "signal": name, "target": "launcher"})
        assert project.warm.wait(pid) == (STOPPED if name == "SIGTERM" else KILLED)
        used += time.monotonic() - began
    began = time.monotonic()
    assert project.warm.wait(start(project, PAUSE_S)) == FINISHED
    return used + time.monotonic() - began


def computed(project: Project) -> int:
    """Return the number of steps that the model counted."""
    return (project.folder / COUNTED).stat().st_size


def test_the_account_of_stopped_attempts_is_exact_to_the_step(prepared: Project, tmp_path: Path) -> None:
    project = copy(prepared, tmp_path / "stops")
    used = chain_of(project, (5, "SIGTERM"), (15, "SIGTERM"))
    found = accounting.account(project.workspace)
    assert (found.attempts, found.redone, found.reused) == (3, 0, 0)
    assert found.steps == computed(project) == project.sealed().step
    assert found.used_s == pytest.approx(used, abs=3 * ENDS_S)
    second, third = row(project)["attempts"][1:]
    assert 0 < found.lost_s < second["seconds"] + third["seconds"]


def test_the_account_of_killed_attempts_is_exact_to_the_heartbeat(prepared: Project, tmp_path: Path) -> None:
    """At most the time and steps since the last heartbeat are missing."""
    project = copy(prepared, tmp_path / "kills")
    path = project.folder / "experiment.yaml"
    path.write_text(path.read_text().replace("interval_steps: 5", "interval_steps: 16"))
    kills = ((15, "SIGKILL"), (31, "SIGKILL"), (31, "SIGKILL"))  # each at least fifteen steps after the last save
    used = chain_of(project, *kills)
    found = accounting.account(project.workspace)
    assert found.attempts == 4
    assert used - 3 * HEARTBEAT_S - 4 * ENDS_S < found.used_s <= used + 0.1
    missing, allowed = computed(project) - found.steps, len(kills) * (HEARTBEAT_S / PAUSE_S + 2)
    assert 0 <= missing <= allowed
    assert computed(project) - project.sealed().step >= 3 * 15
    assert found.steps == project.sealed().step + found.redone
    assert found.redone >= 3 * 15 - allowed
    assert found.lost_s > found.redone * PAUSE_S


def test_each_reuse_of_a_finished_run_saves_its_cost(finished: Project) -> None:
    before = accounting.account(finished.workspace)
    assert (before.reused, before.saved_s) == (0, 0.0)
    for again in (1, 2):
        shutil.rmtree(finished.output.parent)
        assert finished.attempt() == FINISHED
        found = accounting.account(finished.workspace)
        assert found == replace(found, attempts=before.attempts, used_s=before.used_s, lost_s=before.lost_s)
        assert found.reused == again
        assert found.saved_s == pytest.approx(again * (before.used_s - before.lost_s), abs=0.01)


def test_an_interruption_before_the_results_are_written_is_no_reuse(prepared: Project, tmp_path: Path) -> None:
    project = copy(prepared, tmp_path / "between")
    assert project.attempt({"point": "outputs", "rank": -1}) == KILLED
    project.finish()
    assert accounting.account(project.workspace).reused == 0


def test_steps_below_the_furthest_earlier_step_are_redone() -> None:
    killed = [attempt(0, 100, 11.0, why=None), attempt(80, 90, 2.0, why=None), attempt(80, 200, 13.0, why="finished")]
    assert accounting.redone_steps(killed) == [0, 10, 20]
    found = account_of(killed, delivered=1)
    assert (found.steps, found.redone) == (230, 30)
    step_s = (26.0 - 3.0) / 230
    assert found.lost_s == pytest.approx(30 * step_s + 2 * 1.0, abs=0.001)


def test_the_whole_time_of_an_attempt_without_steps_is_lost() -> None:
    found = account_of([attempt(0, None, 4.0, ready_s=None, why=None), attempt(0, 10, 6.0, why="finished")], 1)
    assert (found.steps, found.redone, found.used_s) == (10, 0, 10.0)
    stopped = [attempt(0, 5, 6.0, why="stopped by SIGTERM"), attempt(5, None, 4.0, ready_s=None, why="failed: x")]
    assert account_of([*stopped, attempt(5, 10, 6.0, why="finished")], 1).lost_s == 5.0


def test_continuing_a_pruned_trial_loses_nothing() -> None:
    assert account_of([attempt(0, 5, 6.0, why="pruned"), attempt(5, 10, 6.0, why="finished")], 1).lost_s == 0.0


def test_an_attempt_reached_at_least_the_step_that_the_next_resumed_from() -> None:
    heartbeats = [attempt(0, 7, 1.0, why=None), attempt(10, 15, 1.0, why=None), attempt(10, None, 1.0, why=None)]
    assert [attempt.reached for attempt in accounting.complete_reached(heartbeats, saved=20)] == [10, 15, None]


def test_gpus_are_counted_for_the_time_they_are_allocated() -> None:
    runs = [replace(attempt(0, 10, 10.0, why="finished"), gpu_seconds=40.0)] * 2
    found = account_of(runs[:1], delivered=3)
    assert (found.used_gpu_s, found.saved_gpu_s) == (40.0, 80.0)
    assert accounting.total(account_of([run], 1) for run in runs).used_gpu_s == 80.0


@pytest.mark.parametrize(
    ("environ", "nodes", "allocated"),
    [
        ({"SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 2, 8),
        ({"SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "3"}, 1, 1),
        ({"SLURM_JOB_ID": "1"}, 1, 0),
        ({"SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 1, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 1, 0),
    ],
)
def test_the_gpus_of_a_job_are_those_allocated_on_each_node(
    environ: dict[str, str], nodes: int, allocated: int
) -> None:
    assert job.gpus_of_own_job(nodes, environ) == allocated


def test_an_allocated_gpu_counts_even_if_it_is_not_used(prepared: Project, tmp_path: Path) -> None:
    project = copy(prepared, tmp_path / "allocated")
    given = {"SLURM_JOB_ID": "77", "CUDA_VISIBLE_DEVICES": "0,1"}
    path = project.folder / "experiment.yaml"
    path.write_text(path.read_text().replace("runtime:", "runtime:\n  device: cpu"))
    assert project.warm.wait(project.warm.start(project.order(**given))) == FINISHED
    found = accounting.account(project.workspace)
    assert found.used_gpu_s == pytest.approx(2 * found.used_s, abs=0.01)


def test_the_account_is_printed_as_text(finished: Project) -> None:
    text = " ".join(status_table.table([row(finished)]).split())
    assert "in 2 attempts" in text
    assert "lost to interruptions" in text
    assert "saved" in text
    text = status_table.spent(Account(3, 200, 20, 2, 7200.0, 14400.0, 720.0, 1440.0, 6480.0, 0.0))
    assert text == (
        "used 2.0 h in 3 attempts, 4.00 GPU-hours; lost to interruptions 12 min (10.0 %, 20 of 200 steps computed "
        "again); saved by reuse 1.8 h (needed again 2 times and not trained)"
    ).replace("1.8 h", "108 min")
