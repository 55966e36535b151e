"""A pack on the cluster: one job, which is preempted or loses its node, and goes on where each run is; mostly idle."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import Any

import yaml

from tests.slurm.conftest import EXPERIMENT

PACKED: dict[str, Any] = {
    "runtime": {"lease_wait_s": 1, "lease_timeout_s": 10, "device": "cpu", "pack": "auto"},
    "sweep": {"grid": {"seed": [0, 1]}},
    "evaluate": {"bootstrap": 20},
    "export": {"batch_sizes": [1]},
}


def packed(project: Any) -> Any:
    """Return the project with the experiment in a pack."""
    (project.folder / "config/slow.yaml").write_text(yaml.safe_dump(yaml.safe_load(EXPERIMENT) | PACKED))
    project.makes_all = True
    return project


def test_a_preempted_pack_is_one_job_and_loses_no_step(project: Any, reference: dict[str, str]) -> None:
    with packed(project).snakemake() as snakemake:
        snakemake.wait_for(lambda: project.epochs() >= 5 and project.running_job())
        job = project.running_job()
        project.cluster.occupy(job.node, seconds=3)
        snakemake.wait_for(lambda: any(attempt["resumed_step"] for attempt in project.attempts()))
        said = snakemake.finish()
    assert project.result() == reference
    assert {attempt["job"] for attempt in project.attempts()} == {job.id}, "the job went back to the queue"
    assert "Trying to restart" not in said
    assert said.count("has been submitted with SLURM jobid") == 1, "results of the pack are handed out here"
    of_runs = {run: list(found) for run, found in groupby(project.attempts_by_run(), lambda pair: pair[0])}
    assert len(of_runs) == 2
    for attempts in of_runs.values():
        assert attempts[-1][1]["reason"] == "finished"
        for (_, first), (_, second) in pairwise(attempts):
            assert first["reason"] == "stopped by SIGTERM"
            assert second["resumed_step"] == first["step"] > 0, "not a step is lost"


def test_a_pack_on_a_dead_node_resumes_on_another(project: Any, reference: dict[str, str]) -> None:
    with packed(project).snakemake() as snakemake:
        snakemake.wait_for(lambda: project.epochs() >= 5 and project.running_job())
        job = project.running_job()
        project.cluster.sandbox("down", job.node)
        try:
            snakemake.wait_for(lambda: any(attempt["resumed_step"] for attempt in project.attempts()))
        finally:
            project.cluster.sandbox("up", job.node)
        snakemake.finish()
    assert project.result() == reference
    assert {attempt["job"] for attempt in project.attempts()} == {job.id}, "SLURM requeued it"
    assert len([attempt for attempt in project.attempts() if attempt["node"] != job.node]) == 2, "both runs moved"
