"""After any interruption on the cluster, the training finishes with the bits of an uninterrupted one.

Each test waits until SLURM notices the interruption, requeues the job and starts it again: about a minute, mostly idle.
The training runs without pauses only after the interruption.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import EVERSTEP, WAIT_S, wait_until
from workflow_lib.housekeeping import cleaning

RESTARTED = "Trying to restart"
UNCOUNTED = 6  # limit of a job's time outside of its attempt, in multiples of the time to start a training


def test_an_undisturbed_training_on_the_cluster_gives_the_bits_of_one_on_this_machine(
    project: Any, reference: dict[str, str]
) -> None:
    project.delay_s = 0
    project.make()
    assert project.result() == reference
    assert len(project.attempts()) == 1


def test_a_preempted_training_saves_and_resumes_without_using_a_retry(project: Any, reference: dict[str, str]) -> None:
    with project.snakemake() as snakemake:
        snakemake.wait_for(lambda: project.epochs() >= 5 and project.running_job())
        job = project.running_job()
        project.cluster.occupy(job.node, seconds=3)
        snakemake.wait_for(lambda: len(project.attempts()) == 2)
        said = snakemake.finish()
    assert project.result() == reference
    first, second = project.attempts()
    assert first["reason"] == "stopped by SIGTERM"
    assert second["resumed_step"] == first["step"] > 0, "not a step is lost"
    assert first["job"] == second["job"] == job.id, "the job went back to the queue"
    assert RESTARTED not in said
    wait_until(lambda: len(project.cluster.spent(job.id)) == 2)
    spent = project.cluster.spent(job.id)
    assert first["step"] * project.delay_s < first["seconds"] < spent[0]
    assert second["ready_s"] < second["seconds"] < spent[1]
    # a job begins with two Snakemakes; where the machine is busy they take longer, as the start of a training does
    for attempt, seconds in zip((first, second), spent, strict=True):
        assert seconds - attempt["seconds"] < UNCOUNTED * attempt["ready_s"]


def test_a_training_that_does_not_stop_in_the_grace_time_is_killed_and_requeued(
    project: Any, reference: dict[str, str]
) -> None:
    with project.snakemake() as snakemake:
        snakemake.wait_for(lambda: project.epochs() >= 5 and project.running_job())
        (project.folder / "hang").touch()
        project.cluster.occupy(project.running_job().node, seconds=3)
        snakemake.wait_for(lambda: [job.state for job in project.jobs()] == ["PENDING"] or len(project.attempts()) == 2)
        (project.folder / "hang").unlink()
        said = snakemake.until_trained()
    assert project.result() == reference
    first, second = project.attempts()
    assert first["state"] == "running", "it could not record its end"
    assert second["resumed_step"] > 0
    assert RESTARTED not in said


def test_a_signal_to_the_job_stops_and_requeues_it(project: Any, reference: dict[str, str]) -> None:
    with project.snakemake() as snakemake:
        snakemake.wait_for(lambda: project.epochs() >= 5 and project.running_job())
        job = project.running_job()
        project.cluster.ask("scancel", "--signal=TERM", job.id)
        snakemake.wait_for(lambda: len(project.attempts()) == 2)
        said = snakemake.until_trained()
    assert project.result() == reference
    first, second = project.attempts()
    assert second["resumed_step"] == first["step"] > 0
    assert first["job"] == second["job"] == job.id
    assert RESTARTED not in said


def test_without_requeueing_a_stopped_job_is_submitted_again(project: Any, reference: dict[str, str]) -> None:
    project.train = {"on_stop": "retry", "slurm_extra": "'--exclusive --no-requeue'"}
    with project.snakemake() as snakemake:
        snakemake.wait_for(lambda: project.epochs() >= 5 and project.running_job())
        project.cluster.ask("scancel", "--signal=TERM", project.running_job().id)
        snakemake.wait_for(lambda: len(project.attempts()) == 2)
        said = snakemake.until_trained()
    assert project.result() == reference
    first, second = project.attempts()
    assert first["reason"] == "stopped by SIGTERM"
    assert second["resumed_step"] == first["step"] > 0, "not a step is lost"
    assert first["job"] != second["job"]
    assert RESTARTED in said


def test_a_job_that_a_user_cancels_is_submitted_again(project: Any, reference: dict[str, str]) -> None:
    with project.snakemake() as snakemake:
        snakemake.wait_for(lambda: project.epochs() >= 5 and project.running_job())
        project.cluster.ask("scancel", project.running_job().id)
        snakemake.wait_for(lambda: len(project.attempts()) == 2)
        said = snakemake.until_trained()
    assert project.result() == reference
    first, second = project.attempts()
    assert second["resumed_step"] == first["step"] > 0
    assert first["job"] != second["job"], "a cancelled job is not requeued"
    assert RESTARTED in said


def test_a_killed_rank_is_a_failure_and_is_retried(project: Any, reference: dict[str, str]) -> None:
    with project.snakemake() as snakemake:
        snakemake.wait_for(lambda: project.epochs() >= 5 and project.attempts()[0]["ranks"])
        os.kill(project.attempts()[0]["ranks"][0]["pid"], signal.SIGKILL)
        snakemake.wait_for(lambda: len(project.attempts()) == 2)
        said = snakemake.until_trained()
    assert project.result() == reference
    first, second = project.attempts()
    assert "killed" in first["reason"]
    assert second["resumed_step"] > 0
    assert RESTARTED in said


def test_a_training_on_a_dead_node_resumes_on_another(project: Any, reference: dict[str, str]) -> None:
    with project.snakemake() as snakemake:
        snakemake.wait_for(lambda: project.epochs() >= 5 and project.running_job())
        node = project.running_job().node
        project.cluster.sandbox("down", node)
        try:
            snakemake.wait_for(lambda: len(project.attempts()) == 2)
        finally:
            project.cluster.sandbox("up", node)
        said = snakemake.until_trained()
    assert project.result() == reference
    first, second = project.attempts()
    assert second["node"] != node
    assert second["resumed_step"] > 0
    assert first["job"] == second["job"]
    assert RESTARTED not in said


def test_a_restart_of_the_scheduler_interrupts_no_training(project: Any, reference: dict[str, str]) -> None:
    project.delay_s = 0.05  # short, since the other tests wait while the controller is down
    with project.snakemake() as snakemake:
        snakemake.wait_for(lambda: project.epochs() >= 3 and project.running_job())
        project.cluster.sandbox("down", "controller")
        seen = project.epochs()
        snakemake.wait_for(lambda: project.epochs() >= seen + 3)
        project.cluster.sandbox("up", "controller")
        snakemake.until_trained()
    assert project.result() == reference
    assert len(project.attempts()) == 1


def _text(path: Path) -> str:
    """Return the text of a file; empty if it does not exist yet."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def test_a_job_of_a_killed_snakemake_keeps_its_code_and_is_taken_over_or_waited_for(
    project: Any, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, project.cluster.environment[name])
    project.delay_s = 0.25
    with ExitStack() as running:
        snakemake = running.enter_context(project.snakemake())
        snakemake.wait_for(lambda: project.epochs() >= 3 and project.running_job())
        orphan = project.running_job()
        snakemake.kill()
        code = max(project.folder.glob("work/code/*"), key=lambda path: (path / ".code.json").stat().st_mtime)
        os.utime(code / ".code.json", (0, 0))
        assert code not in [item.path for item in cleaning.removable(code.parents[1], project.folder / "results")]
        again = running.enter_context(project.snakemake())
        again.wait_for(lambda: f"is SLURM job {orphan.id} of an earlier Snakemake" in again.log.read_text())
        assert [job.id for job in project.jobs()] == [orphan.id]
        again.kill()
        project.train = {"mem_mb": 501}  # a job with other resources is submitted, and waits
        with project.snakemake() as successor:
            successor.wait_for(lambda: {job.id for job in project.jobs()} - {orphan.id})
            (second,) = {job.id for job in project.jobs()} - {orphan.id}
            # Snakemake removes the log of the orphan before the second job starts
            logs = project.folder / "logs" / "train" / "slow"
            successor.wait_for(lambda: "is being trained by" in _text(logs / f"{project.run}.log"))
            said = successor.finish()
    assert f"To stop it, with a save: scancel {orphan.id}\n" in said
    assert project.result() == reference
    assert [attempt["job"] for attempt in project.attempts()] == [orphan.id], f"{second} trained nothing"


def test_ctrl_c_cancels_jobs_which_save_and_waits_for_no_check_of_the_jobs(
    project: Any, reference: dict[str, str]
) -> None:
    project.check_s = 60_000  # Snakemake sleeps when the signal comes
    with project.snakemake(EVERSTEP) as everstep:
        everstep.wait_for(lambda: project.epochs() >= 5 and project.running_job())
        everstep.process.send_signal(signal.SIGINT)
        assert everstep.process.wait(WAIT_S) == 75
    (first,) = project.attempts()
    said = everstep.log.read_text()
    assert f"train {project.run}: stopped by SIGTERM at step {first['step']:,}; saved\n" in said
    project.check_s = 2
    with project.snakemake() as successor:
        successor.wait_for(lambda: len(project.attempts()) == 2)
        successor.until_trained()
    assert project.result() == reference
    assert project.attempts()[1]["resumed_step"] == first["step"] > 0


def test_edits_of_experiment_code_and_rules_while_a_job_waits_change_nothing(
    project: Any, reference: dict[str, str]
) -> None:
    project.train = {"slurm_extra": "'--exclusive --begin=now+8'"}
    with project.snakemake() as snakemake:
        snakemake.wait_for(lambda: [job.state for job in project.jobs()] == ["PENDING"])
        for name in ("config/slow.yaml", "workflow_lib/models/slow.py", "workflow_lib/__init__.py", "rules/common.smk"):
            (project.folder / name).write_text("this: [is neither an experiment nor code")
        snakemake.until_trained()
    assert project.result() == reference
