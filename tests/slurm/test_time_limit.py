"""A training that needs more time than a job gets finishes in a chain of jobs, and none of them is a failure.

SLURM counts time limits in minutes: these take two to three of them, nearly all idle. A job has half a minute and more
to begin before it is disturbed.
"""

from __future__ import annotations

from typing import Any


def test_a_training_longer_than_its_time_limit_stops_in_time_and_goes_on(
    project: Any, reference: dict[str, str]
) -> None:
    project.train, project.delay_s = {"runtime": 2}, 0.4
    with project.snakemake() as snakemake:
        snakemake.wait_for(lambda: len(project.attempts()) == 2)
        said = snakemake.until_trained()
    assert project.result() == reference
    *stopped, last = project.attempts()
    assert len(stopped) >= 1
    assert {attempt["reason"] for attempt in stopped} == {"stopped before the deadline"}
    assert all(attempt["seconds"] < 120 for attempt in stopped)
    assert {attempt["job"] for attempt in stopped} == {last["job"]}, "one job, started again"
    assert "Trying to restart" not in said


def test_a_signal_before_the_time_limit_does_the_same(project: Any, reference: dict[str, str]) -> None:
    # SLURM sends it up to a minute earlier than asked: after 60 to 120 seconds of the 162 that the steps take
    project.train = {"runtime": 3, "slurm_extra": "'--exclusive --signal=TERM@60'"}
    project.delay_s = 0.3
    with project.snakemake() as snakemake:
        snakemake.wait_for(lambda: len(project.attempts()) == 2)
        first, second = project.attempts()
        # no second signal: as the training ends it would find Snakemake alone, which then calls its job a failure
        project.cluster.ask("scontrol", "update", f"JobId={second['job']}", "TimeLimit=30")
        said = snakemake.until_trained()
    assert project.result() == reference
    assert first["reason"] == "stopped by SIGTERM"
    assert first["job"] == second["job"]
    assert [attempt["reason"] for attempt in project.attempts()] == ["stopped by SIGTERM", "finished"]
    assert "Trying to restart" not in said
