"""Whatever happens on the cluster, the training ends, and the bits are those of an undisturbed one.

Each test waits for SLURM to notice, to requeue and to start again: about a minute, most of it idle. Only what comes
after the disturbance hurries.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from tests.slurm.conftest import wait_until

RESTARTED = "Trying to restart"
UNCOUNTED = 6  # starts of a training: of a job's time, what it spends before the training's process is there


def test_an_undisturbed_training_on_the_cluster_gives_the_bits_of_one_made_here(
    project: Any, reference: dict[str, str]
) -> None:
    project.delay_s = 0
    project.make()
    assert project.result() == reference
    assert len(project.attempts()) == 1


def test_a_preempted_training_saves_and_goes_on_without_using_up_a_retry(
    project: Any, reference: dict[str, str]
) -> None:
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


def test_a_training_that_does_not_stop_in_the_grace_is_killed_and_requeued(
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
    assert first["state"] == "running", "it never came to write its end"
    assert second["resumed_step"] > 0
    assert RESTARTED not in said


def test_a_signal_to_the_job_stops_it_and_it_goes_back_to_the_queue(project: Any, reference: dict[str, str]) -> None:
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


def test_where_no_job_may_be_requeued_a_stopped_one_is_submitted_again(project: Any, reference: dict[str, str]) -> None:
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


def test_a_job_that_a_person_cancels_is_tried_again(project: Any, reference: dict[str, str]) -> None:
    with project.snakemake() as snakemake:
        snakemake.wait_for(lambda: project.epochs() >= 5 and project.running_job())
        project.cluster.ask("scancel", project.running_job().id)
        snakemake.wait_for(lambda: len(project.attempts()) == 2)
        said = snakemake.until_trained()
    assert project.result() == reference
    first, second = project.attempts()
    assert second["resumed_step"] == first["step"] > 0
    assert first["job"] != second["job"], "what a person cancelled does not come back by itself"
    assert RESTARTED in said


def test_a_rank_killed_for_memory_is_a_failure_and_is_tried_again(project: Any, reference: dict[str, str]) -> None:
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


def test_a_node_that_dies_takes_nothing_with_it(project: Any, reference: dict[str, str]) -> None:
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


def test_a_scheduler_that_restarts_disturbs_nobody(project: Any, reference: dict[str, str]) -> None:
    project.delay_s = 0.05  # the other tests wait meanwhile
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
    """The text of a file; empty where there is none yet."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def test_twins_after_a_killed_controller_train_one_run_once(project: Any, reference: dict[str, str]) -> None:
    project.delay_s = 0.25
    with project.snakemake() as snakemake:
        snakemake.wait_for(lambda: project.epochs() >= 3 and project.running_job())
        orphan = project.running_job()
        snakemake.kill()
        with project.snakemake() as successor:
            successor.wait_for(lambda: {job.id for job in project.jobs()} - {orphan.id})
            (twin,) = {job.id for job in project.jobs()} - {orphan.id}
            logs = (
                project.folder / "logs" / "train" / "slow"
            )  # Snakemake removes the orphan's log before the twin starts
            successor.wait_for(lambda: "is being trained by" in _text(logs / f"{project.run}.log"))
            successor.finish()
    assert project.result() == reference
    assert [attempt["job"] for attempt in project.attempts()] == [orphan.id], f"{twin} trained nothing"


def test_the_work_of_a_job_whose_controller_was_killed_is_not_lost(project: Any, reference: dict[str, str]) -> None:
    with project.snakemake() as snakemake:
        snakemake.wait_for(lambda: project.epochs() >= 5 and project.running_job())
        orphan = project.running_job()
        snakemake.kill()
        project.cluster.ask("scancel", orphan.id)
        with project.snakemake() as successor:
            successor.wait_for(lambda: len(project.attempts()) == 2)
            successor.until_trained()
    assert project.result() == reference
    first, second = project.attempts()
    assert second["resumed_step"] == first["step"] > 0


def test_an_experiment_edited_while_its_job_waits_changes_nothing(project: Any, reference: dict[str, str]) -> None:
    project.train = {"slurm_extra": "'--exclusive --begin=now+8'"}
    with project.snakemake() as snakemake:
        snakemake.wait_for(lambda: [job.state for job in project.jobs()] == ["PENDING"])
        (project.folder / "config" / "slow.yaml").write_text("this: [is not an experiment")
        snakemake.until_trained()
    assert project.result() == reference
