"""What a job asks the scheduler that runs it, and what it says to it.

A training that stopped before it was done has not failed. Its job goes back to the queue under the same number, so that
whoever waits for the job goes on waiting, and the tries that are meant for failures stay for failures.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime

PATIENCE_S = 60  # with a controller that does not answer


def requeue_own_job(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether SLURM will start the job of this process again; the job is to end now.

    Not when somebody cancelled it, when it is over its time limit (SLURM ends it in both cases), or when it was
    submitted as one that must not start twice.
    """
    job = environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    facts = _facts(job)
    if facts.get("JobState") != "RUNNING" or facts.get("Requeue") != "1":
        return False
    return _scontrol("requeue", job) is not None


def seconds_left(environ: Mapping[str, str] = os.environ) -> float | None:
    """Until SLURM ends the job of this process; None outside of a job, and where SLURM does not say.

    A job may have begun long before this process did: its own clock tells nothing.
    """
    try:
        return datetime.fromisoformat(_facts(environ["SLURM_JOB_ID"])["EndTime"]).timestamp() - time.time()
    except (KeyError, ValueError):
        return None


def gpus_of_own_job(nodes: int, environ: Mapping[str, str] = os.environ) -> int:
    """GPUs that the job of this process holds on its nodes, used or not; 0 outside of a job."""
    given = environ.get("CUDA_VISIBLE_DEVICES", "")
    if "SLURM_JOB_ID" not in environ or given in ("", "NoDevFiles"):
        return 0
    return nodes * len(given.split(","))


def _facts(job: str) -> dict[str, str]:
    answer = _scontrol("show", "job", "--oneliner", job) or ""
    return dict(fact.split("=", 1) for fact in answer.split() if "=" in fact)


def _scontrol(*arguments: str) -> str | None:
    """What it prints; None where it fails, does not answer, or is not here."""
    command = ["scontrol", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout
    except (OSError, subprocess.SubprocessError):
        return None
