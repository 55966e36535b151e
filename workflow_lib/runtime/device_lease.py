"""Leases of this machine's GPUs: no two trainings compute on the same GPU, whoever started them, from any folder.

    /tmp/everstep-gpus/GPU-1f5c.lock    locked (flock) while a process holds that GPU
    /tmp/everstep-gpus/000012.json      a ticket: a process, the GPUs that it can use and needs, and those that it holds

The locks alone guarantee that a GPU has at most one holder. The kernel releases a lock when the process that took it
and all processes forked from it have ended, for any reason. The tickets provide the order and the names of the holders.
Each ticket is locked by its process, and is ignored once it is unlocked. GPUs are given in the order of the tickets:
free GPUs are reserved for earlier tickets, so trainings that need one GPU cannot starve a training that needs four.

There is no global lock, since a suspended process could hold it. The folder is for all users (mode 1777, like /tmp),
and no user writes to a file of another. Processes in containers take part if they share the host's folder.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from workflow_lib.errors import ConfigError, Stopped, shortened
from workflow_lib.files import decoded, naming
from workflow_lib.processes import user
from workflow_lib.runtime import gpus
from workflow_lib.runtime.batch_job import job_id

logger = logging.getLogger(__name__)

FOLDER = Path("/tmp/everstep-gpus")  # never TMPDIR, which differs between users
POLL_S = 0.5
SILENT_S = 30.0  # a waiting process that has not polled for so long is skipped; it regains its place when it continues
UNPUBLISHED_S = 60.0  # age at which an unpublished ticket belongs to a process that was killed
TICKET_BYTES = 1 << 16
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@dataclass(frozen=True)
class Ticket:
    """The GPUs that a process wants and holds. `choice` and `held` are hardware names (`gpus.visible`)."""

    number: int
    host: str
    user: str
    pid: int
    who: str
    count: int
    choice: tuple[str, ...]
    held: tuple[str, ...] = ()
    polled: float = 0.0  # wall-clock time at which its process last polled

    def __str__(self) -> str:
        text = f"{shortened(self.who)} (pid {self.pid}, {shortened(self.user)} on {shortened(self.host)})"
        return "".join(letter if letter.isprintable() else "?" for letter in text)  # another user may have written it


@contextmanager
def lease_devices(
    count: int,
    who: str,
    ids: Sequence[str] | None = None,
    *,
    folder: Path | None = None,
    must_stop: Callable[[], object] = bool,
    report: Callable[[str], None] = logger.info,
    environ: Mapping[str, str] = os.environ,
) -> Iterator[tuple[str, ...]]:
    """Lease `count` GPUs for this process and its forks; yield their entries for CUDA_VISIBLE_DEVICES.

    `who` describes the work to other users. With `ids` None, the choice is what CUDA_VISIBLE_DEVICES allows. Waits
    without a time limit, and passes the reason to `report` whenever it changes. Raises Stopped if `must_stop` returns
    true, and ConfigError if there are fewer than `count` GPUs. Inside a SLURM job, its processes share its GPUs.
    """
    choice = _choice(count, ids, environ)
    wanted = "a GPU" if count == 1 else f"{count} GPUs"
    folder = folder or FOLDER
    reported = None
    with ExitStack() as held:
        with naming(folder):
            place = held.enter_context(_open_folder(folder))
            own = _OwnTicket(
                place, Ticket(0, socket.gethostname(), user(), os.getpid(), who, count, tuple(choice.values()))
            )
            held.callback(own.close)
        while True:
            with naming(folder):
                taken = _taken(_tickets(place), own.ticket, time.time())
                free = {id: name for id, name in choice.items() if name not in taken}
                if leased := _lock_gpus(place, count, free, held):
                    own.publish(replace(own.ticket, held=tuple(choice[id] for id in leased)))
                    break
                own.touch()
            if (reason := _reason(choice, taken)) != reported:
                reported = reason
                report(f"waiting for {wanted}: {reason}")
            if must_stop():
                raise Stopped(
                    f"asked to stop while waiting for {wanted}; nothing was changed. Run the same command again"
                )
            time.sleep(POLL_S)
        yield tuple(leased)


def _choice(count: int, ids: Sequence[str] | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the entries for CUDA_VISIBLE_DEVICES to choose from, each with its hardware name."""
    job, given = job_id(environ), environ.get(gpus.VISIBLE)
    if ids is not None:
        choice = {id: id for id in ids}
    elif job and given:
        choice = {id: f"job {job}: {id}" for id in given.split(",")}  # the numbers are valid inside the job only
    else:
        choice = gpus.visible(environ)
    if len(choice) < count:
        raise ConfigError(f"runtime.nproc: {count} GPUs are needed; there are {', '.join(choice) or 'none'}")
    return choice


class _OwnTicket:
    """The published ticket of this process. Its file stays locked until the process and its forks have ended."""

    def __init__(self, folder: int, ticket: Ticket) -> None:
        self._folder = folder
        self._file = -1
        self.ticket = ticket
        while self._file < 0:
            number = 1 + max(map(_number, os.listdir(folder)), default=0)
            with suppress(FileExistsError):  # another process took the number
                self._publish(replace(ticket, number=number), os.link)

    def publish(self, ticket: Ticket) -> None:
        """Replace the visible ticket atomically by this ticket, which is already locked."""
        self._publish(ticket, os.rename)

    def touch(self) -> None:
        """Show other processes that this one is not suspended."""
        os.utime(self._file)

    def close(self) -> None:
        """Release the ticket; processes forked from this one keep it locked until they end."""
        if self._file >= 0:
            os.close(self._file)

    def _publish(self, ticket: Ticket, give_name: Callable[..., None]) -> None:
        content, new = json.dumps(asdict(ticket)).encode(), f".{uuid.uuid4().hex}.json"
        with ExitStack() as undo:
            with _for_all_users():
                file = os.open(new, NEW, 0o644, dir_fd=self._folder)
            undo.callback(os.close, file)
            undo.callback(_remove, new, self._folder)
            # locked before it gets its name: other processes ignore, and may remove, an unlocked ticket
            fcntl.flock(file, fcntl.LOCK_EX)
            os.write(file, content)
            give_name(new, f"{ticket.number:06d}.json", src_dir_fd=self._folder, dst_dir_fd=self._folder)
            undo.pop_all()
        _remove(new, self._folder)
        self.close()
        self.ticket, self._file = ticket, file


def _taken(tickets: Sequence[Ticket], own: Ticket, now: float) -> dict[str, Ticket]:
    """Return the GPUs that `own` cannot have, each with its holder, or the earlier ticket that it is reserved for."""
    others = [ticket for ticket in tickets if ticket.number != own.number]
    taken = {name: ticket for ticket in others for name in ticket.held}
    for ticket in others:
        if ticket.number < own.number and not ticket.held and now - ticket.polled < SILENT_S:
            free = [name for name in ticket.choice if name not in taken]
            taken |= dict.fromkeys(free[: ticket.count], ticket)
    return taken


def _lock_gpus(folder: int, count: int, free: Mapping[str, str], held: ExitStack) -> list[str]:
    """Lock `count` of the free GPUs until `held` closes, and return their entries; none if there are fewer."""
    if len(free) < count:
        return []
    with ExitStack() as locks:
        ids: list[str] = []
        for id, name in free.items():
            if len(ids) < count and (lock := _lock_gpu(folder, name)) is not None:
                locks.callback(os.close, lock)
                ids.append(id)
        if len(ids) < count:
            return []
        held.enter_context(locks.pop_all())
    return ids


def _lock_gpu(folder: int, name: str) -> int | None:
    """Return the locked file of the GPU; None if another process holds it."""
    path = f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:200]}.lock"
    with suppress(FileExistsError), _for_all_users():
        os.close(os.open(path, NEW, 0o644, dir_fd=folder))
    with suppress(FileNotFoundError):  # another process removed it, since nobody held it
        file = os.open(path, READ, dir_fd=folder)
        if _lock(file, fcntl.LOCK_EX) and _is_at(file, path, folder):
            return file
        os.close(file)
    return None


def _reason(choice: Mapping[str, str], taken: Mapping[str, Ticket]) -> str:
    """Return a text that names the holders of the GPUs, and the earlier tickets that they are reserved for."""
    found: dict[Ticket, list[str]] = {}
    for id, name in choice.items():
        if name in taken:
            found.setdefault(taken[name], []).append(id)
    reasons = [f"{', '.join(ids)} {'held by' if each.held else 'reserved for'} {each}" for each, ids in found.items()]
    return "; ".join(reasons) or "another process is about to take them"


@contextmanager
def _open_folder(path: Path) -> Iterator[int]:
    """Create the folder if it is missing, open and lock it; the lock keeps systemd-tmpfiles from removing old files."""
    while True:
        with _for_all_users():
            path.mkdir(mode=0o1777, exist_ok=True)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if _lock(folder, fcntl.LOCK_SH) and _is_at(folder, path):
            break
        os.close(folder)  # systemd-tmpfiles is cleaning it
        time.sleep(POLL_S)
    try:
        yield folder
    finally:
        _sweep(folder)
        os.close(folder)


def _tickets(folder: int) -> list[Ticket]:
    """Return the tickets of living processes, in order of their numbers."""
    found = []
    for name in filter(_number, os.listdir(folder)):
        with suppress(OSError, ValueError, TypeError, LookupError, RecursionError), _open(name, folder) as file:
            if not _lock(file, fcntl.LOCK_SH):
                found.append(_read(file, _number(name)))
    return sorted(found, key=lambda ticket: ticket.number)


def _sweep(folder: int) -> None:
    """Remove the files that no process locks, as far as this user is allowed to.

    A file is removed under an exclusive lock. A process that locks a removed file detects it with `_is_at`.
    """
    for name in os.listdir(folder):
        if re.fullmatch(r"[A-Za-z0-9_-]+\.lock|\d{6,}\.json", name) or _is_unpublished(name, folder):
            with suppress(OSError), _open(name, folder) as file:
                if _lock(file, fcntl.LOCK_EX) and _is_at(file, name, folder):
                    os.unlink(name, dir_fd=folder)


@contextmanager
def _open(name: str, folder: int) -> Iterator[int]:
    file = os.open(name, READ, dir_fd=folder)
    try:
        yield file
    finally:
        os.close(file)


def _remove(name: str, folder: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _read(file: int, number: int) -> Ticket:
    content = json.loads(os.pread(file, TICKET_BYTES, 0))
    names = {key: tuple(map(str, content[key])) for key in ("choice", "held")}
    return decoded(Ticket, {**content, **names, "number": number, "polled": os.fstat(file).st_mtime})


def _is_at(file: int, name: str | Path, folder: int | None = None) -> bool:
    """Return True if the name still refers to the open file."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(name, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


@contextmanager
def _for_all_users() -> Iterator[None]:
    """Clear the umask in the block, so that new files have their final permissions from the start."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def _lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _number(name: str) -> int:
    """Return the number in the name of a ticket's file; 0 for any other name."""
    match = re.fullmatch(r"(\d{6,})\.json", name)
    return int(match[1]) if match else 0


def _is_unpublished(name: str, folder: int) -> bool:
    """Return True for an unpublished ticket of a process that was killed at least a minute ago."""
    if not re.fullmatch(r"\.[0-9a-f]{32}\.json", name):
        return False
    with suppress(OSError):
        return time.time() - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime > UNPUBLISHED_S
    return False
