"""A training that needs more time than one job gets finishes in several starts of it, none of which is a failure.

SLURM counts time limits in minutes, so these tests take two to three minutes, nearly all of it idle. A job has at least
half a minute to start before it is interrupted.
"""

from __future__ import annotations

from typing import Any


def test_a_training_longer_than_its_time_limit_stops_in_time_and_resumes(
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
    # SLURM sends it up to a minute earlier than requested: after 60 to 120 seconds of the 162 that the steps take
    project.train = {"runtime": 3, "slurm_extra": "'--exclusive --signal=TERM@60'"}
    project.delay_s = 0.3
    with project.snakemake() as snakemake:
        snakemake.wait_for(lambda: len(project.attempts()) == 2)
        first, second = project.attempts()
        # prevent a second signal: if it comes as the training ends, Snakemake alone receives it and reports a failure
        project.cluster.ask("scontrol", "update", f"JobId={second['job']}", "TimeLimit=30")
        said = snakemake.until_trained()
    assert project.result() == reference
    assert first["reason"] == "stopped by SIGTERM"
    assert first["job"] == second["job"]
    assert [attempt["reason"] for attempt in project.attempts()] == ["stopped by SIGTERM", "finished"]
    assert "Trying to restart" not in said
