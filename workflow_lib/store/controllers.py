"""The Snakemake processes of a project: which of them run, and whose locks may be removed.

The next Snakemake removes the lock of a killed one; the lock of a running Snakemake is never touched.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shlex
import shutil
import socket
import uuid
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

import psutil

from workflow_lib.errors import shortened
from workflow_lib.slurm import queue

DETACHED = "EVERSTEP_DETACHED"  # variable: number of the SLURM job that Snakemake runs in, by `everstep run --detach`

_held: list[TextIO] = []


def enter(folder: Path) -> list[str]:
    """Register this Snakemake and remove the lock of killed ones; return host and pid of each.

    Each Snakemake holds a file in `controllers/` under an exclusive flock, which the kernel releases however the
    process ends. A file of another host, or one that is still held, protects every lock.
    """
    controllers = folder / "controllers"
    controllers.mkdir(parents=True, exist_ok=True)
    own = controllers / f"{uuid.uuid4().hex}.held"
    _hold(own)  # before the check: of two that start together, at least one sees the other
    others = [path for path in controllers.glob("*.held") if path != own]
    if not others or not all(_is_dead(path) for path in others):
        return []
    shutil.rmtree(folder / "locks", ignore_errors=True)
    killed = [text for path in others if (text := _read(path)) is not None]
    for path in others:
        path.unlink(missing_ok=True)
    return killed


def is_any_running(folder: Path) -> bool:
    """Return True if a Snakemake may run; `folder` is its `.snakemake`. One of another host counts."""
    return not all(_is_dead(path) for path in folder.glob("controllers/*.held"))


def killed_words(killed: str, folder: Path) -> str:
    """Return the message about a Snakemake that was killed, with its jobs that are still in the queue of a cluster."""
    text = f"Snakemake {killed} was killed; its lock is removed"
    if not (jobs := queue.jobs_of(folder)):
        return text
    are, them = ("job {} is", "it") if len(jobs) == 1 else ("jobs {} are", "them")
    return (
        f"{text}. Its {are.format(', '.join(jobs))} still in the queue: this pipeline takes over what it would submit "
        f"again, and other new jobs of the same runs wait for {them}. To stop {them}, with a save: scancel "
        f"{' '.join(jobs)}"
    )


def lock_message(folder: Path) -> str:
    """Return the message for locked files: which Snakemake holds the lock, and what to do."""
    own = {Path(file.name).with_suffix(".held").name for file in _held}
    others = [path for path in sorted(folder.glob("controllers/*.held")) if path.name not in own]
    running = [text for path in others if not _is_dead(path) and (text := _read(path))]
    here = f"{socket.gethostname()} "
    pids = [int(text.split()[1]) for text in running if text.startswith(here)]
    elsewhere = [" (pid ".join(text.split()[:2]) + ")" for text in running if not text.startswith(here)]
    if pids:
        groups = sorted({group for pid in pids if (group := _group(pid)) is not None})
        stop = f" or, from here, kill -INT -- {' '.join(f'-{group}' for group in groups)}" if groups else ""
        return (
            f"another Snakemake uses the same files in {folder.absolute().parent}: {', '.join(map(_described, pids))}. "
            f"Nothing was changed. Let it finish, or stop it and its trainings, which save (Ctrl-C there{stop}). "
            "Then run the same command again"
        )
    hosts = (
        f" by a Snakemake on {', '.join(elsewhere)}, whose process cannot be checked from this host"
        if elsewhere
        else ""
    )
    return (
        f"the files are locked in {folder.absolute()}/locks{hosts}. Nothing was changed. If no Snakemake runs here "
        f"any more, delete {folder}/controllers and {folder}/locks, and run the same command again"
    )


def _group(pid: int) -> int | None:
    """Return the process group, whose jobs get a signal, too; Snakemake forwards none to them."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _described(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        since = datetime.fromtimestamp(process.create_time()).strftime("%Y-%m-%d %H:%M")
        return f"pid {pid}, since {since}: {shortened(shlex.join(process.cmdline()), 200)}"
    except psutil.Error:  # it has just ended, or is in another container
        return f"pid {pid}"


def _hold(path: Path) -> None:
    """Create a file that this process has locked before it appears under its name."""
    new = path.with_suffix(".new")
    file = new.open("w", encoding="utf-8")
    with suppress(OSError):  # a file system without flock: no lock is removed there
        fcntl.flock(file, fcntl.LOCK_EX)
    file.write(" ".join([socket.gethostname(), str(os.getpid()), *_own_job()]))
    file.flush()
    new.rename(path)
    _held.append(file)
    atexit.register(path.unlink, missing_ok=True)


def _own_job() -> list[str]:
    return [job for job in [os.environ.get(DETACHED)] if job]


def _read(path: Path) -> str | None:
    """Return the text of a file that was just listed; None if its process has just ended normally."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _is_dead(path: Path) -> bool:
    """Return True if the process that held the file has certainly ended."""
    try:
        with path.open(encoding="utf-8") as file:
            host, _, process = file.read().partition(" ")
            if _own_job() and process.split()[1:] == _own_job():  # before it was requeued, maybe on another host
                return True
            # A power loss can leave the file empty.
            if host not in (socket.gethostname(), ""):
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass  # it has just ended normally
    except OSError:  # it is held, or the file system has no flock
        return False
    return True
