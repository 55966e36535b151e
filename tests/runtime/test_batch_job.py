"""The job of a batch scheduler that a process belongs to."""

from __future__ import annotations

import pytest

from workflow_lib.runtime.batch_job import is_of_slurm, job_id


@pytest.mark.parametrize(
    ("environ", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"PBS_JOBID": "7[2].server"}, "PBS 7[2].server"),
        ({"LSB_JOBID": "7", "LSB_JOBINDEX": "0"}, "LSF 7"),
        ({"LSB_JOBID": "7", "LSB_JOBINDEX": "3"}, "LSF 7[3]"),
        ({"LSB_JOBID": "7"}, "LSF 7"),
        ({"JOB_ID": "7", "SGE_TASK_ID": "undefined"}, "SGE 7"),
        ({"JOB_ID": "7", "SGE_TASK_ID": "3"}, "SGE 7.3"),
        ({"JOB_ID": "7"}, None),
        ({"FLUX_JOB_ID": "f23r45t"}, "Flux f23r45t"),
        ({"FLUX_JOB_ID": "f23r45t", "SLURM_JOB_ID": "8"}, "8"),
    ],
)
def test_a_job_is_named_by_its_scheduler(environ: dict[str, str], job: str | None) -> None:
    assert job_id(environ) == job


def test_slurm_is_asked_about_its_own_jobs_only() -> None:
    assert [job for job in ("7", "PBS 7", "LSF 7[3]", "SGE 7.3", "Flux f23r45t") if is_of_slurm(job)] == ["7"]
