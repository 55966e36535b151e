"""Several ranks are as exact as one. If a rank fails, the job ends, names the cause and leaves no process."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import with_ranks
from tests.support.project import (
    FAILED,
    FINISHED,
    KILLED,
    PASS,
    SETTINGS,
    STOPPED,
    Project,
    differences,
    merged,
    prepare,
)
from tests.support.warm import Warm, members, until
from workflow_lib.slurm import nodes
from workflow_lib.store import attempts as ws


def running(run: Project, fault: dict[str, Any] | None = None) -> tuple[int, dict[int, int]]:
    """Start an attempt; return its launcher and the process of each rank once it trains."""
    begun = len(run.began_at())
    pid = run.start(*([fault] if fault else []))
    until(lambda: len(run.began_at()) > begun, "the training to begin")

    def ranks() -> dict[int, int]:
        records = [record for record in ws.list_attempts(run.workspace) if record.pid == pid]
        return {rank.rank: rank.pid for record in records for rank in record.ranks}

    return pid, until(ranks, "the record of the ranks")


# long enough to be interrupted in its loop, which has no point between two steps to wait for
LONG = {"training": {"epochs": 4000}, "checkpoint": {"interval_steps": 50, "max_stalled_attempts": 9}}


def long_with_ranks(ranks: int, **changes: Any) -> dict[str, Any]:
    return {**with_ranks(ranks, **changes), **LONG}


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_are_exact(fresh: Fresh, reference: Fresh, ranks: int) -> None:
    """Also with three or four ranks, since with two ranks sums are equal in either order."""
    changes = with_ranks(ranks)
    run, last = fresh(changes), ranks - 1
    for fault, code in (
        ({"point": "backward", "count": 2, "rank": 0}, FAILED),
        ({"point": "optimizer", "count": 4, "rank": last, "signal": "SIGTERM"}, STOPPED),
        ({"point": "warm-up", "count": 2, "rank": last}, FAILED),
        ({"point": "validate", "count": 1, "rank": 1, "signal": "SIGTERM"}, STOPPED),
        ({"point": "gather", "count": 1, "rank": last, "target": "launcher"}, KILLED),
        ({"point": "poll", "count": 3, "rank": 0, "target": "group"}, KILLED),
    ):
        assert run.attempt({"signal": "SIGKILL", **fault}) == code, fault
    assert run.verdict(reference(changes)) == PASS


def test_ranks_whose_micro_batches_have_other_sizes_are_exact(fresh: Fresh, reference: Fresh) -> None:
    """Of 131 samples, the micro-batches of the first rank have 32 and 33, those of the second both 33."""
    changes = merged(with_ranks(2, hang_timeout_s=20), {"training": {"batch_size": 131, "accumulation_steps": 2}})
    run = fresh(changes)
    assert run.attempt({"point": "optimizer", "count": 5, "rank": 1, "signal": "SIGKILL"}) == FAILED
    assert run.verdict(reference(changes)) == PASS


def test_a_later_node_may_come_before_the_first(fresh: Fresh, reference: Fresh) -> None:
    """Two launchers, as ``srun`` starts them; that of the first node has not created the workspace yet."""
    run, port = fresh(with_ranks(1, nodes=2)), str(nodes._free_port())
    slurm = {"SLURM_JOB_ID": "1", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", nodes.PORT: port, nodes.TOKEN: "a" * 32}
    later = run.warm.start(run.order(**slurm, SLURM_NODEID="1"))
    until(lambda: list(run.folder.glob("work/runs/*/*/attempts/*")), "the later one to be ready")
    first = run.warm.start(run.order(**slurm, SLURM_NODEID="0"))
    assert (run.warm.wait(later), run.warm.wait(first)) == (FINISHED, FINISHED), run.log
    assert differences(reference(with_ranks(2)), run) == []


MODEL = """
from torch import nn
from workflow_lib.plugins import Section

class Params(Section):
    "No settings."

def build(params, spec):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, spec.outputs))
"""


def test_nodes_that_have_read_different_code_are_rejected(warm: Warm, tmp_path: Path) -> None:
    """Two nodes with separate folders, one of which has an older file; ``work`` and ``results`` are shared."""
    settings = merged(SETTINGS, with_ranks(1, nodes=2)) | {"model": {"name": "halfway.net"}}
    files = {"halfway/__init__.py": "", "halfway/net.py": MODEL.replace("WIDTH", "8")}
    run = prepare(tmp_path / "first", warm, settings, files)
    other = Project(tmp_path / "second", warm, run.run, run.data)
    shutil.copytree(run.folder, other.folder, ignore=shutil.ignore_patterns("work", "results", "__pycache__"))
    for name in ("work", "results"):
        (other.folder / name).symlink_to(run.folder / name)
    (other.folder / "halfway/net.py").write_text(MODEL.replace("WIDTH", "9"))

    def both() -> tuple[int, int]:
        slurm = {"SLURM_JOB_ID": "1", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}
        slurm |= {nodes.PORT: str(nodes._free_port()), nodes.TOKEN: "a" * 32}
        started = [warm.start(project.order(**slurm, SLURM_NODEID=str(i))) for i, project in enumerate((run, other))]
        return warm.wait(started[0]), warm.wait(started[1])

    assert both() == (2, 2), run.log + other.log
    for log in (run.log, other.log):
        assert "the nodes of the job have read different files: the digest of the code is" in log
        assert "Traceback" not in log
    assert not list(run.folder.glob("work/runs/*/*/checkpoints/*"))
    workspaces = [path for path in run.folder.glob("work/runs/*/*") if path.is_dir()]
    (record,) = [record for path in workspaces for record in ws.list_attempts(path)]
    assert str(record.reason).startswith("failed: the nodes of the job have read different files")
    shutil.copy(run.folder / "halfway/net.py", other.folder / "halfway/net.py")
    assert both() == (FINISHED, FINISHED), run.log + other.log


def _terminate_twice(launcher: int, ranks: dict[int, int]) -> None:
    for _ in range(2):
        os.killpg(launcher, signal.SIGTERM)


SIGNALS: dict[str, Callable[[int, dict[int, int]], object]] = {
    "to one rank": lambda launcher, ranks: os.kill(ranks[1], signal.SIGTERM),
    "to the launcher": lambda launcher, ranks: os.kill(launcher, signal.SIGTERM),
    "to the group": lambda launcher, ranks: os.killpg(launcher, signal.SIGTERM),
    "to the group twice": _terminate_twice,
    "of the user to the launcher": lambda launcher, ranks: os.kill(launcher, signal.SIGUSR1),
    "of the keyboard to the group": lambda launcher, ranks: os.killpg(launcher, signal.SIGINT),
}


@pytest.mark.parametrize("who", SIGNALS)
def test_a_signal_to_stop_saves_and_ends_all(fresh: Fresh, who: str) -> None:
    run = fresh(long_with_ranks(2))
    launcher, ranks = running(run)
    SIGNALS[who](launcher, ranks)
    assert run.warm.wait(launcher) == STOPPED
    assert members(launcher) == []
    assert f"at step {run.newest_step()}; saved" in run.log.splitlines()[-1]


def test_a_kill_after_a_stop_loses_no_saved_step(fresh: Fresh) -> None:
    run = fresh(long_with_ranks(2))
    launcher, _ = running(run)
    until(run.newest_step, "a checkpoint")
    saved = run.newest_step()
    os.killpg(launcher, signal.SIGTERM)
    os.killpg(launcher, signal.SIGKILL)
    assert run.warm.wait(launcher) == KILLED
    until(lambda: members(launcher) == [], "all to end")
    assert run.newest_step() >= saved
    assert run.attempt({"point": "poll", "signal": "SIGTERM"}) == STOPPED
    assert run.findings == []


def test_a_rank_that_dies_while_the_others_wait_for_it_ends_the_job_too(fresh: Fresh) -> None:
    """Takes half a minute: torch waits that long for the other ranks to end by themselves, which they cannot."""
    run = fresh(with_ranks(2))
    assert run.attempt({"point": "join", "rank": 1}) == FAILED
    assert "rank 1 was killed by SIGKILL" in run.log.splitlines()[-1]
    assert run.findings == []


def test_a_rank_that_dies_ends_the_job_and_is_named(fresh: Fresh) -> None:
    run = fresh(long_with_ranks(3, hang_timeout_s=3600))  # so the death itself ends the job, not the wait of the others
    launcher, ranks = running(run)
    os.kill(ranks[2], signal.SIGKILL)
    assert run.warm.wait(launcher) == FAILED
    assert "rank 2 was killed" in run.log.splitlines()[-1]
    assert members(launcher) == []


def test_ranks_end_with_their_launcher(fresh: Fresh) -> None:
    run = fresh(long_with_ranks(2))
    launcher, ranks = running(run)
    os.kill(launcher, signal.SIGKILL)
    assert run.warm.wait(launcher) == KILLED
    until(lambda: members(launcher) == [], "the ranks to end")


def test_a_rank_that_is_stopped_from_outside_ends_the_job_and_is_named(fresh: Fresh) -> None:
    run = fresh(long_with_ranks(2, hang_timeout_s=10))
    launcher, ranks = running(run)
    os.kill(ranks[1], signal.SIGSTOP)
    assert run.warm.wait(launcher) == FAILED
    assert f"rank 1 (pid {ranks[1]}) was stopped from outside" in run.log.splitlines()[-1]
    assert members(launcher) == []


def test_a_rank_that_hangs_ends_the_job_and_is_named(fresh: Fresh) -> None:
    run = fresh(with_ranks(2, hang_timeout_s=10))
    assert run.attempt(plant="tests.plugins.plants:rank_one_hangs") == FAILED
    assert "no rank has made a step for 10 s" in run.log.splitlines()[-1]
    assert "rank 1 (pid" in run.log.splitlines()[-1]
    assert run.findings == []


def test_a_rank_that_exits_without_a_result_ends_the_job(fresh: Fresh) -> None:
    run = fresh()
    assert run.attempt(plant="tests.plugins.plants:the_rank_leaves") == FAILED
    assert "the ranks ended without a result and without an error" in run.log.splitlines()[-1]
    assert run.findings == []


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_threads_and_processes_of_the_users_code_do_not_delay_a_finished_rank(fresh: Fresh, kind: str) -> None:
    run = fresh({"model": {"name": "tests.plugins.lasting", "params": {"kind": kind}}, "runtime": {"nproc": 2}})
    assert run.attempt() == FINISHED
    for rank in (0, 1):
        assert f"rank {rank} is done, and ends what the user's code left running: {kind} uploader" in run.log
    assert run.findings == []


def test_a_rank_that_raises_ends_the_job_with_its_own_message(fresh: Fresh) -> None:
    run = fresh(with_ranks(3))
    assert run.attempt(plant="tests.plugins.plants:rank_one_raises") == FAILED
    assert "rank 1 failed: ValueError: a bug in the user's model" in run.log.splitlines()[-1]
    assert run.findings == []


def test_another_device_on_any_rank_is_reported_as_not_exact(fresh: Fresh) -> None:
    run, plant = fresh(with_ranks(2)), "tests.plugins.plants:rank_one_has_another_gpu"
    for count in (2, 4):
        stop = {"point": "optimizer", "count": count, "rank": 0, "signal": "SIGTERM"}
        assert run.attempt(stop, plant=plant) == STOPPED
    assert "the ranks differ in device_name: GPU 0, GPU 1" in run.log
    assert "not exact" not in run.log  # the same devices in the same order
    run.finish()
    assert "not exact from here: device_name changed" in run.log
    assert run.sealed().about["exact"] is False


@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 2)])
def test_another_world_size_loses_and_repeats_no_sample_and_is_not_called_exact(
    fresh: Fresh, before: int, after: int
) -> None:
    run = fresh(with_ranks(before))
    fault = {"point": "optimizer", "count": 5, "signal": "SIGTERM"}
    assert run.attempt(fault, plant="tests.plugins.plants:samples_are_written") == STOPPED
    experiment = run.folder / "experiment.yaml"
    experiment.write_text(experiment.read_text().replace(f"nproc: {before}", f"nproc: {after}"))
    assert run.attempt(plant="tests.plugins.plants:samples_are_written") == FINISHED
    assert "not exact from here: world_size changed" in run.log
    assert run.sealed().about["exact"] is False
    used = [line.split() for path in run.folder.glob("samples-*.txt") for line in path.read_text().splitlines()]
    for epoch in ("0", "1"):
        samples = sorted(int(sample) for number, *samples in used if number == epoch for sample in samples)
        assert len(samples) == len(set(samples)) == 132 * (len(set(range(1168))) // 132)
