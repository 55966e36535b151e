"""The job of a batch scheduler, such as SLURM, PBS or LSF, that this process belongs to."""

from __future__ import annotations

import os
from collections.abc import Mapping


def job_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the job's number under SLURM; under another scheduler also its name. None outside of a job."""
    if job := environ.get("SLURM_JOB_ID"):
        return job
    if job := environ.get("PBS_JOBID"):
        return f"PBS {job}"
    if job := environ.get("LSB_JOBID"):
        index = environ.get("LSB_JOBINDEX", "0")  # the jobs of an array share their number
        return f"LSF {job}" if index == "0" else f"LSF {job}[{index}]"
    if (job := environ.get("JOB_ID")) and (task := environ.get("SGE_TASK_ID")):  # any program may set JOB_ID
        return f"SGE {job}" if task == "undefined" else f"SGE {job}.{task}"
    if job := environ.get("FLUX_JOB_ID"):
        return f"Flux {job}"
    return None


def is_of_slurm(job: str) -> bool:
    """Return True if SLURM can be asked about the job."""
    return " " not in job
