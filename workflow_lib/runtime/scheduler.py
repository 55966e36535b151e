"""What a job says to the scheduler that runs it.

A training that stopped before it was done has not failed. Its job goes back to the queue under the same number, so that
whoever waits for the job goes on waiting, and the tries that are meant for failures stay for failures.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping


def requeue_own_job(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether SLURM will start the job of this process again; the job is to end now.

    Not when somebody cancelled it, when it is over its time limit (SLURM ends it in both cases), or when it was
    submitted as one that must not start twice.
    """
    job = environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    answer = _scontrol("show", "job", "--oneliner", job).stdout
    facts = dict(fact.split("=", 1) for fact in answer.split() if "=" in fact)
    if facts.get("JobState") != "RUNNING" or facts.get("Requeue") != "1":
        return False
    return _scontrol("requeue", job).returncode == 0


def gpus_of_own_job(nodes: int, environ: Mapping[str, str] = os.environ) -> int:
    """GPUs that the job of this process holds on its nodes, used or not; 0 outside of a job."""
    given = environ.get("CUDA_VISIBLE_DEVICES", "")
    if "SLURM_JOB_ID" not in environ or given in ("", "NoDevFiles"):
        return 0
    return nodes * len(given.split(","))


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=False, timeout=60)
