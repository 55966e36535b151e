"""The jobs in SLURM's queue that were submitted from a folder: Snakemake's, and Snakemake in a job of its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from workflow_lib.slurm import job

ENDING = ("COMPLETING", "CANCELLED", "COMPLETED", "FAILED", "TIMEOUT")
CONTROLLER = "everstep-run"  # name of the job of `everstep run --detach`
UNCONFIGURED = "Could not establish a configuration source"  # said by a client of SLURM without a cluster
OF_RULE = "rule_"  # beginning of the comment of a job that Snakemake submitted
OF_PIPELINE = "run_"  # beginning of the comment of a job of `everstep run --detach`; the name of its experiment follows
RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "STAGE_OUT", "RESIZING"}


class _Row(NamedTuple):
    number: str
    state: str
    name: str
    comment: str
    folder: str


def jobs_of(folder: Path) -> list[str]:
    """Return the ids of the user's jobs that are queued or run, in order; none without SLURM or without its answer."""
    mine = [row for row in _rows("--me") or () if row.folder == str(folder) and row.comment.startswith(OF_RULE)]
    return list(dict.fromkeys(row.number for row in mine))


def pipelines_of(folder: Path, experiment: str) -> dict[str, str]:
    """Return the user's jobs of `everstep run --detach` for the experiment, by id: their states."""
    rows = [row for row in _rows("--me") or () if row.folder == str(folder) and row.name == CONTROLLER]
    return {row.number: row.state for row in rows if row.comment == f"{OF_PIPELINE}{experiment}"}


def has_ended(job_id: str) -> bool:
    """Return True if SLURM confirms that the job of any user does not run; False also without SLURM."""
    if shutil.which("squeue") is None:
        return False
    command = ["squeue", "--noheader", "--jobs", job_id, "--format", "%A %T"]  # of an array, all tasks
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return False
    if answer.returncode != 0:
        return "Invalid job id" in answer.stderr
    states = {line.split()[-1] for line in answer.stdout.splitlines() if line.split()[:1] == [job_id]}
    return not states & RUNNING


def is_node(host: str) -> bool:
    """Return True if SLURM knows a node with the name of this host, without its domain."""
    if shutil.which("sinfo") is None:
        return False
    command = ["sinfo", "--noheader", "--nodes", host.partition(".")[0], "--format", "%N"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return False
    return answer.returncode == 0 and bool(answer.stdout.strip())


def folders() -> set[Path] | None:
    """Return the folders from which any user has submitted jobs that are queued or run; None if SLURM does not answer.

    Some clusters show a user only the own jobs.
    """
    rows = _rows()
    if rows is None:
        return None
    return {Path(row.folder) for row in rows if row.name == CONTROLLER or row.comment.startswith(OF_RULE)}


def _rows(*options: str) -> list[_Row] | None:
    """Return the jobs that have not ended; none without a SLURM, and None if it does not answer."""
    if shutil.which("squeue") is None:
        return []
    command = ["squeue", *options, "--noheader", "--sort", "i", "--format", "%A|%T|%j|%k|%Z"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=job.TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode != 0:
        return [] if UNCONFIGURED in done.stderr else None
    return list(_parsed(done.stdout))


def _parsed(printed: str) -> Iterator[_Row]:
    for line in printed.splitlines():
        if line.count("|") >= 4:
            number, state, name, comment, folder = line.split("|", 4)
            if state not in ENDING:
                yield _Row(number, state, name, comment, folder)
