"""Leases: a workspace has at most one owner.

    leases/000007.json        the holder: attempt, host, pid, start time, job
    leases/000007.beat        heartbeat: the holder updates its modification time
    leases/000007.released    the holder released the lease

The owner is the holder of the highest number. A successor leaves the files of its predecessor alone and creates the
next number by ``link``, which succeeds for only one contender. An owner that sees a higher number was taken over, and
publishes nothing more.

A lease is taken over at once if it was released, if its process has ended on this host, or if its job has ended
according to the scheduler. It is never taken over while its process runs on this host; a suspended one does not run.
Otherwise it is taken over when the heartbeat has not changed for the holder's timeout or the contender's, whichever is
longer, measured by the contender's clock: clocks of two hosts are never compared.

A holder in another PID namespace counts as being on another host, even if the host names are equal.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from io import FileIO
from pathlib import Path
from types import TracebackType

import psutil

from workflow_lib.errors import Stopped, WorkspaceBusy
from workflow_lib.files import decoded, names_in, naming, temporary_name
from workflow_lib.processes import boot_id, machine
from workflow_lib.runtime.batch_job import is_of_slurm, job_id
from workflow_lib.runtime.clock import start_s
from workflow_lib.slurm import queue
from workflow_lib.store.layout import is_store, leases_dir

logger = logging.getLogger(__name__)

BEATS_PER_TIMEOUT = 6
LONGEST_BEAT_S = 10.0  # upper limit, so that a contender soon sees that the holder is alive
POLL_S = 0.2
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # file system without hard links
ASK_SCHEDULER_S = 5.0  # at most one query in this time


@dataclass(frozen=True)
class Holder:
    """The process that holds, or held, a workspace."""

    attempt: str
    host: str
    boot: str
    pid: int
    start_time: float
    job: str | None
    machine: str = ""
    timeout_s: float = field(default=0.0, compare=False)  # without a heartbeat, before it may be taken over

    @classmethod
    def this_process(cls, attempt: str, timeout_s: float = 0.0) -> Holder:
        """Return the calling process as a holder."""
        return cls(
            attempt=attempt,
            host=socket.gethostname(),
            boot=boot_id(),
            pid=os.getpid(),
            start_time=start_s(os.getpid()),
            job=job_id(),
            machine=machine(),
            timeout_s=timeout_s,
        )

    def is_of_this_host(self) -> bool:
        """Return True for a process of this host and PID namespace, also if the host has rebooted since."""
        return (self.host, self.machine) == (socket.gethostname(), machine())

    def is_gone(self) -> bool:
        """Return True only if the holder has certainly ended."""
        if self.is_of_this_host():
            return self.boot != boot_id() or not is_alive(self.pid, self.start_time)
        if self.job is None or self.job == job_id() or not is_of_slurm(self.job):
            return False
        return _job_is_gone(self.job, int(time.monotonic() // ASK_SCHEDULER_S))

    def is_running_here(self) -> bool:
        """Return True if the holder is a process of this host and not suspended."""
        if not self.is_of_this_host() or self.is_gone():
            return False
        try:
            return psutil.Process(self.pid).status() not in (
                psutil.STATUS_STOPPED,
                psutil.STATUS_TRACING_STOP,
            )
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"attempt {self.attempt[:8]} (host {self.host}, pid {self.pid}{job})"


UNKNOWN = Holder("unknown", host="an unknown host", boot="", pid=0, start_time=0.0, job=None)


class Lease:
    """The right to publish in a workspace, kept alive by a heartbeat until it is released."""

    def __init__(self, directory: Path, number: int, timeout_s: float) -> None:
        self.number = number
        self._directory = directory
        self._owner = os.getpid()
        self._ended = threading.Event()
        self._beat = directory / f"{number:06d}.beat"
        # others cannot read the timeout in an empty lease and use their own, which may be short: beat more often
        is_empty = (directory / f"{number:06d}.json").stat().st_size == 0
        longest_s = LONGEST_BEAT_S / 10 if is_empty else LONGEST_BEAT_S
        self._thread = threading.Thread(
            target=self._keep_beating,
            args=(min(timeout_s / BEATS_PER_TIMEOUT, longest_s),),
            name="lease",
            daemon=True,
        )
        self._beat.touch()
        self._thread.start()

    @classmethod
    def acquire(
        cls,
        workspace: Path,
        attempt: str,
        *,
        timeout_s: float,
        wait_s: float = 0.0,
        must_stop: Callable[[], object] = bool,
        on_full_disk: bool = False,
    ) -> Lease:
        """Acquire the lease of the workspace, waiting up to ``wait_s`` for a live holder.

        With ``on_full_disk``, an empty lease is acceptable if there is no space: others then treat its holder as an
        unknown process on another host.

        Raises:
            WorkspaceBusy: The workspace has a live holder.
            Stopped: ``must_stop`` returned a true value while waiting.
        """
        directory = leases_dir(workspace)
        started = time.monotonic()
        watched: tuple[int, float] | None = None  # number of the lease and its last seen heartbeat
        first_seen = started
        while True:
            directory.mkdir(parents=True, exist_ok=True)  # a clean may remove the workspace between two polls
            number, holder = current(directory)
            if holder is None or _is_released(directory, number) or holder.is_gone():
                if _create(directory, number + 1, Holder.this_process(attempt, timeout_s), on_full_disk):
                    return cls(directory, number + 1, timeout_s)
                continue
            beat = _beat_of(directory, number)
            now = time.monotonic()
            beating = watched is not None and watched[0] == number and watched[1] != beat
            if watched is None or watched != (number, beat):
                if watched is None:
                    logger.info("%s is held by %s; waiting", workspace, holder)
                watched, first_seen = (number, beat), now
            is_running = holder.is_running_here()
            if (beating or is_running) and now - started >= wait_s:
                doing = "prepared or removed" if is_store(workspace) else "trained"
                raise WorkspaceBusy(
                    f"{workspace} is being {doing} by {holder}. Nothing was changed. Let it finish and run this "
                    f"again, or stop that process first"
                )
            silent_s = max(timeout_s, holder.timeout_s)
            if now - first_seen >= silent_s and not is_running:
                logger.warning("%s has had no heartbeat for %.0f s; taking over", holder, silent_s)
                if _create(directory, number + 1, Holder.this_process(attempt, timeout_s), on_full_disk):
                    return cls(directory, number + 1, timeout_s)
            if must_stop():
                raise Stopped(f"asked to stop while {holder} held {workspace}; nothing was changed")
            time.sleep(POLL_S)

    def holds(self) -> bool:
        """Return True if the lease was not taken over; to be checked before anything is published."""
        return current(self._directory)[0] == self.number

    def release(self) -> None:
        """Release the lease; without effect in a process that did not acquire it, such as a forked child."""
        if self._ended.is_set() or os.getpid() != self._owner:
            return
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(FileNotFoundError):  # the workspace itself may have been removed meanwhile
            (self._directory / _released_name(self.number)).touch()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _keep_beating(self, every_s: float) -> None:
        while not self._ended.wait(every_s):
            try:
                os.utime(self._beat)
            except OSError as error:
                logger.warning("cannot renew the lease of %s: %s", self._directory.parent, error)


def current(directory: Path) -> tuple[int, Holder | None]:
    """Return the highest lease number (0: never held) and its holder."""
    number = _highest(names_in(directory))
    holder = _holder(directory, number) if number else None
    return (number, holder) if holder is not None else (0, None)


def _highest(names: Iterable[str]) -> int:
    """Return the highest lease number among the file names; 0 without a lease."""
    stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    return max((int(stem) for stem in stems if stem.isdecimal()), default=0)


def _holder(directory: Path, number: int) -> Holder | None:
    """Return the holder of a lease that was just listed; None if a clean has removed the workspace since."""
    try:
        content = json.loads((directory / f"{number:06d}.json").read_bytes())
        return decoded(Holder, content)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, OverflowError, RecursionError):
        return UNKNOWN


def holder_of(workspace: Path) -> Holder | None:
    """Return the current holder of the workspace, or None if it is free."""
    directory = leases_dir(workspace)
    number, holder = current(directory)
    if holder is None or _is_released(directory, number) or holder.is_gone():
        return None
    return holder


def last_seen(workspace: Path) -> tuple[Holder, float] | None:
    """Return the holder of the workspace and the age of its heartbeat in seconds by this host's clock; None if free.

    The scheduler is not asked: a holder on another host is returned until it releases, however old its heartbeat is.
    """
    directory = leases_dir(workspace)
    names = names_in(directory)
    number = _highest(names)
    if not number or _released_name(number) in names:  # true for nearly all runs of a large store, so no file is opened
        return None
    holder = _holder(directory, number)
    if holder is None or (holder.is_of_this_host() and holder.is_gone()):
        return None
    return holder, max(0.0, time.time() - _beat_of(directory, number))


def is_alive(pid: int, start_time: float) -> bool:
    """Return True if the process exists, with this start time and not as a zombie."""
    try:
        return start_s(pid) == start_time and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _create(directory: Path, number: int, holder: Holder, on_full_disk: bool = False) -> bool:
    """Create the numbered file atomically; return True if this contender created it, so that no other can."""
    lease = directory / f"{number:06d}.json"
    temporary = temporary_name(lease)
    try:
        with naming(lease), temporary.open("xb", buffering=0) as file:
            _write(file, json.dumps(asdict(holder), sort_keys=True).encode(), on_full_disk)
            sys.audit("everstep", "fsync", str(temporary))
            os.fsync(file.fileno())  # after a power loss, a lease must not be empty: its holder would be unknown
        _link(temporary, lease)
    except FileExistsError:
        # NFS may report a failure although the link was created; the link count is reliable
        return temporary.stat().st_nlink == 2
    except FileNotFoundError:  # a clean has just removed the workspace
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _write(file: FileIO, content: bytes, on_full_disk: bool) -> None:
    try:
        if file.write(content) < len(content):  # the disk became full in between
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        if not on_full_disk or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        file.truncate(0)


def _link(temporary: Path, lease: Path) -> None:
    """Give the written file the name of the lease. Raises FileExistsError if another contender was faster."""
    try:
        os.link(temporary, lease)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # without hard links, the lease is empty until it is written, and its holder is unknown to others
        with lease.open("xb") as file:
            file.write(temporary.read_bytes())
            file.flush()
            os.fsync(file.fileno())


def _is_released(directory: Path, number: int) -> bool:
    return (directory / _released_name(number)).exists()


def _released_name(number: int) -> str:
    return f"{number:06d}.released"


def _beat_of(directory: Path, number: int) -> float:
    try:
        return (directory / f"{number:06d}.beat").stat().st_mtime
    except FileNotFoundError:
        return 0.0


@lru_cache(maxsize=8)
def _job_is_gone(job: str, moment: int) -> bool:
    """Return True if SLURM confirms that the job is not running; False also without SLURM.

    ``moment`` is part of the cache key: a contender polls five times a second, but SLURM must be asked less often.
    """
    return queue.has_ended(job)
