"""The jobs in SLURM's queue that Snakemake submitted from a folder."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from workflow_lib.slurm import job

ENDING = ("COMPLETING", "CANCELLED", "COMPLETED", "FAILED", "TIMEOUT")


def jobs_of(folder: Path) -> list[str]:
    """Return the ids of the user's jobs that are queued or run, in order; none without SLURM or without its answer."""
    if shutil.which("squeue") is None:
        return []
    command = ["squeue", "--me", "--noheader", "--sort", "i", "--format", "%A|%T|%k|%Z"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=job.TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return []
    rows = [line.split("|", 3) for line in done.stdout.splitlines() if line.count("|") >= 3]
    mine = [row for row in rows if row[2].startswith("rule_") and row[3] == str(folder)]
    return list(dict.fromkeys(number for number, state, *_ in mine if state not in ENDING))
