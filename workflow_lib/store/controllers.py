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
from typing import NamedTuple, TextIO

import psutil

from workflow_lib.errors import shortened
from workflow_lib.processes import boot_id
from workflow_lib.slurm import queue

NO_JOB = "-"
DETACHED = "EVERSTEP_DETACHED"  # variable: number of the SLURM job that Snakemake runs in, by `everstep run --detach`

_held: list[TextIO] = []


class _Holder(NamedTuple):
    """A Snakemake process, as its file names it. A power loss can leave the file empty."""

    host: str
    pid: int
    job: str  # of `everstep run --detach`; empty elsewhere
    boot: str

    @classmethod
    def read(cls, text: str) -> _Holder:
        host, pid, job, boot, *_ = [*text.split(), "", "", "", ""]
        return cls(host, int(pid) if pid.isdecimal() else 0, job.removeprefix(NO_JOB), boot)

    def words(self) -> list[str]:
        return [self.host, str(self.pid), self.job or NO_JOB, self.boot]

    def is_of_this_kernel(self) -> bool:
        """Return True if a lock of its file is seen here: it is of this host, also in a container of another name."""
        return self.host in (socket.gethostname(), "") or (self.boot != "" and self.boot == boot_id())

    def __str__(self) -> str:
        return " ".join([self.host, str(self.pid), *([self.job] if self.job else [])])


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
    killed = [str(_Holder.read(text)) for path in others if (text := _read(path)) is not None]
    for path in others:
        path.unlink(missing_ok=True)
    return killed


def stop_command(job: str) -> str:
    """Return the command that stops a job of `everstep run --detach` with what it has submitted."""
    return f"scancel --batch --signal=INT {job} (while it waits in the queue: scancel {job})"


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
    running = [_Holder.read(text) for path in others if not _is_dead(path) and (text := _read(path))]
    if jobs := [holder.job for holder in running if holder.job]:
        return (
            f"job {jobs[0]} of `everstep run --detach` uses the same files in {folder.absolute().parent}. Nothing was "
            f"changed. Let it finish, or stop it and its jobs, which save: {stop_command(jobs[0])}. Then run the same "
            "command again"
        )
    if here := [holder for holder in running if holder.is_of_this_kernel()]:
        own_table = [holder.pid for holder in here if holder.host == socket.gethostname()]
        groups = sorted({group for pid in own_table if (group := _group(pid)) is not None})
        stop = f" or, from here, kill -INT -- {' '.join(f'-{group}' for group in groups)}" if groups else ""
        return (
            f"another Snakemake uses the same files in {folder.absolute().parent}: {', '.join(map(_described, here))}. "
            f"Nothing was changed. Let it finish, or stop it and its trainings, which save (Ctrl-C there{stop}). "
            "Then run the same command again"
        )
    elsewhere = ", ".join(f"{holder.host} (pid {holder.pid})" for holder in running)
    hosts = f" by a Snakemake on {elsewhere}, whose process cannot be checked from this host" if elsewhere else ""
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


def _described(holder: _Holder) -> str:
    pid = holder.pid
    if holder.host != socket.gethostname():
        return f"pid {pid} of {holder.host}, a container of this machine"
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
    file.write(" ".join(_Holder(socket.gethostname(), os.getpid(), _own_job(), boot_id()).words()))
    file.flush()
    new.rename(path)
    _held.append(file)
    atexit.register(path.unlink, missing_ok=True)


def _own_job() -> str:
    return os.environ.get(DETACHED, "")


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
            holder = _Holder.read(file.read())
            if holder.job and holder.job == _own_job():  # before it was requeued, maybe on another host
                return True
            if not holder.is_of_this_kernel():
                # a number means nothing on another cluster
                return bool(holder.job) and queue.is_node(holder.host) and queue.has_ended(holder.job)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass  # it has just ended normally
    except OSError:  # it is held, or the file system has no flock
        return False
    return True
