"""The SLURM job of this process: its time limit, its GPUs, and its requeue.

A training that stopped before its end has not failed. Its job returns to the queue under the same number, so that
Snakemake keeps waiting for it and does not count a retry.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

TIMEOUT_S = 60  # for a controller that does not answer


def requeue_own_job(
    minutes: float | None = None, environ: Mapping[str, str] = os.environ, *, is_ending: bool = False
) -> bool:
    """Requeue the job of this process, and return True if SLURM will start it again; the caller must then exit.

    Return False if the job was cancelled, is over its time limit (SLURM ends it in both cases), or was submitted with
    --no-requeue. With ``is_ending``, a job is requeued that SLURM ends already. ``minutes`` is the time limit that the
    job was submitted with: SLURM may have shortened it to fit a gap (--time-min), and would keep the shorter one for
    the rest of the job.
    """
    if "SLURM_JOB_ID" not in environ:
        return False
    facts = _facts(environ["SLURM_JOB_ID"])
    if (facts.get("JobState") != "RUNNING" and not is_ending) or facts.get("Requeue") != "1":
        return False
    job = _name(facts)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM sends it now; the next scontrol inherits that it is ignored
    is_requeued = scontrol("requeue", job) is not None
    if is_requeued and minutes is not None and facts.get("TimeMin", "N/A") != "N/A":
        scontrol("update", f"JobId={job}", f"TimeLimit={math.ceil(minutes)}")
    return is_requeued


def seconds_left(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds until SLURM ends the job of this process; None outside of a job or if SLURM does not answer.

    SLURM is asked, since a job may have begun long before this process.
    """
    try:
        return datetime.fromisoformat(_facts(environ["SLURM_JOB_ID"])["EndTime"]).timestamp() - time.time()
    except (KeyError, ValueError):
        return None


class Interruption(NamedTuple):
    """The reason why SLURM ends a job that nobody has cancelled."""

    reason: str
    is_requeued: bool  # SLURM starts the job again, without being asked to


def interruption(environ: Mapping[str, str] = os.environ) -> Interruption | None:
    """Return why SLURM ends the job of this process; None if it was cancelled, does not end, or SLURM does not answer.

    SLURM shows the state of each of these jobs as COMPLETING.
    """
    if "SLURM_JOB_ID" not in environ:
        return None
    facts, before = _facts(environ["SLURM_JOB_ID"]), environ.get("SLURM_RESTART_COUNT", "0")
    if int(facts.get("Restarts", before)) > int(before):
        return Interruption("SLURM requeues this job", is_requeued=True)
    if facts.get("Reason") == "TimeLimit":
        return Interruption("this job is over its time limit", is_requeued=False)
    if facts.get("PreemptTime", "None") != "None":
        return Interruption("this job is preempted", is_requeued=False)
    return None


def gpus_of_own_job(nodes: int, environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of GPUs that the job of this process holds on its nodes, used or not; 0 outside of a job."""
    given = environ.get("CUDA_VISIBLE_DEVICES", "")
    # SLURM sets NoDevFiles in a job without GPUs
    if "SLURM_JOB_ID" not in environ or given in ("", "NoDevFiles"):
        return 0
    return nodes * len(given.split(","))


def _facts(job: str) -> dict[str, str]:
    """Return what SLURM says about the job of this number.

    An array has the number of one of its tasks, for which SLURM also shows the others.
    """
    answer = scontrol("show", "job", "--oneliner", job) or ""
    shown = (dict(fact.split("=", 1) for fact in line.split() if "=" in fact) for line in answer.splitlines())
    return next((facts for facts in shown if facts.get("JobId") == job), {})


def _name(facts: Mapping[str, str]) -> str:
    """Return the name of the job for ``scontrol``, which would take the number of an array for all of its tasks."""
    return f"{facts['ArrayJobId']}_{facts['ArrayTaskId']}" if "ArrayTaskId" in facts else facts["JobId"]


def scontrol(*arguments: str) -> str | None:
    """Return the output of ``scontrol``; None if it fails, does not answer, or is not installed."""
    command = ["scontrol", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError):
        return None
