"""Orphans: ranks that survived their launcher. Their work is lost, but they occupy memory and devices.

A rank is killed only if an earlier attempt of the same workspace recorded it, and if host, boot, process number, start
time and scheduler job all match. Every other process is left alone.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from workflow_lib.runtime.batch_job import job_id
from workflow_lib.store.attempts import RankProcess, list_attempts
from workflow_lib.store.lease import is_alive

logger = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1
LOOK_S = 1.0  # interval of the checks for the parent, where the kernel offers no signal for its death


@dataclass(frozen=True)
class Orphan:
    """A process that outlived its launcher."""

    attempt: str
    process: RankProcess


def find_orphans(workspace: Path) -> tuple[Orphan, ...]:
    """Return the living ranks of this workspace on this host whose launcher has ended."""
    return tuple(
        Orphan(record.attempt, rank)
        for record in list_attempts(workspace)
        if record.is_of_this_host() and not record.is_alive_here()
        for rank in record.ranks
        if is_alive(rank.pid, rank.start_time)
    )


def end_orphans(
    workspace: Path, *, environ: Mapping[str, str] = os.environ, wait_s: float = 10.0
) -> tuple[Orphan, ...]:
    """Kill the orphans and return those that have ended. Orphans of another job or user are only reported."""
    killed = [orphan for orphan in find_orphans(workspace) if _kill(orphan, environ)]
    deadline = time.monotonic() + wait_s
    for orphan in killed:
        while _is_alive(orphan) and time.monotonic() < deadline:
            time.sleep(0.01)
        outcome = "did not end (in an uninterruptible wait?)" if _is_alive(orphan) else "was killed"
        logger.warning("%s outlived its launcher and %s", _name(orphan), outcome)
    return tuple(orphan for orphan in killed if not _is_alive(orphan))


def exit_with_parent(parent: int) -> None:
    """Make the calling process end when its parent ends, so that no orphan is left.

    On Linux the kernel does this. Elsewhere a thread checks every ``LOOK_S`` seconds, later if a call holds the
    interpreter lock; the next attempt ends processes that are left.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_end_after, args=(parent,), name="parent", daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _kill(orphan: Orphan, environ: Mapping[str, str]) -> bool:
    """Send SIGKILL, and return True, unless the process belongs to another job or user or has ended."""
    try:
        process = psutil.Process(orphan.process.pid)
        if job_id(process.environ()) != job_id(environ):
            logger.warning("%s outlived its launcher, but belongs to another job: left alone", _name(orphan))
        elif _is_alive(orphan):
            process.kill()
            return True
    except psutil.NoSuchProcess:
        pass
    except psutil.AccessDenied:
        logger.warning("%s outlived its launcher, but belongs to another user: left alone", _name(orphan))
    return False


def _is_alive(orphan: Orphan) -> bool:
    return is_alive(orphan.process.pid, orphan.process.start_time)


def _name(orphan: Orphan) -> str:
    return f"rank {orphan.process.rank} of attempt {orphan.attempt[:8]} (pid {orphan.process.pid})"
