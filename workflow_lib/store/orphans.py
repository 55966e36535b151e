"""A ghost is a rank whose launcher is gone: it computes for nobody, and holds memory and devices.

Only processes that an earlier attempt of the same workspace recorded are ever ended: same host, same boot,
same number, same start time, and the same scheduler's job as the caller's. Every other process is left alone.
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

from workflow_lib.store.attempts import RankProcess, list_attempts
from workflow_lib.store.lease import is_alive

logger = logging.getLogger(__name__)
JOB = "SLURM_JOB_ID"
PR_SET_PDEATHSIG = 1
LOOK_S = 1.0  # between two checks of the parent, where the kernel does not watch it


@dataclass(frozen=True)
class Ghost:
    """A process that outlived its launcher."""

    attempt: str
    process: RankProcess


def find_ghosts(workspace: Path) -> tuple[Ghost, ...]:
    """Living ranks of this workspace, on this host, whose launcher is gone."""
    return tuple(
        Ghost(record.attempt, rank)
        for record in list_attempts(workspace)
        if record.is_of_this_host() and not record.is_alive_here()
        for rank in record.ranks
        if is_alive(rank.pid, rank.start_time)
    )


def end_ghosts(workspace: Path, *, environ: Mapping[str, str] = os.environ, wait_s: float = 10.0) -> tuple[Ghost, ...]:
    """The ghosts that were killed, and are gone. One of another job or user is only reported."""
    killed = [ghost for ghost in find_ghosts(workspace) if _kill(ghost, environ)]
    deadline = time.monotonic() + wait_s
    for ghost in killed:
        while _is_alive(ghost) and time.monotonic() < deadline:
            time.sleep(0.01)
        outcome = "does not die (in an uninterruptible wait?)" if _is_alive(ghost) else "is ended"
        logger.warning("%s had outlived its launcher, and %s", _name(ghost), outcome)
    return tuple(ghost for ghost in killed if not _is_alive(ghost))


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


def _kill(ghost: Ghost, environ: Mapping[str, str]) -> bool:
    """Whether SIGKILL was sent."""
    try:
        process = psutil.Process(ghost.process.pid)
        if process.environ().get(JOB) != environ.get(JOB):
            logger.warning("%s outlived its launcher, but belongs to another job: left alone", _name(ghost))
        elif _is_alive(ghost):
            process.kill()
            return True
    except psutil.NoSuchProcess:
        pass
    except psutil.AccessDenied:
        logger.warning("%s outlived its launcher, but belongs to another user: left alone", _name(ghost))
    return False


def _is_alive(ghost: Ghost) -> bool:
    return is_alive(ghost.process.pid, ghost.process.start_time)


def _name(ghost: Ghost) -> str:
    return f"rank {ghost.process.rank} of attempt {ghost.attempt[:8]} (pid {ghost.process.pid})"
