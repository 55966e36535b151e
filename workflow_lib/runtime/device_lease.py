"""GPUs of this machine are leased: no two trainings compute on one, whoever started them and from whichever folder.

    /tmp/everstep-gpus/GPU-1f5c.lock    locked (flock) while a process computes on that GPU, or may begin to
    /tmp/everstep-gpus/000012.json      a ticket: who wants how many of which GPUs, and those it holds

The locks alone keep a GPU to one holder. The kernel releases them when the process that took them and all that were
forked from it are gone, however they ended. The tickets make it fair, and say who holds what: each is locked by its
process likewise, and counts for nothing once it is not. GPUs are given in the order of the tickets: what is free is
kept for those that came earlier, so a training that needs four is not overtaken for ever by others that need one.

There is no lock on the whole, which a suspended process might hold. The folder is for all users (mode 1777, like /tmp),
and nobody writes to a file of another. Processes in containers take part where they share the host's folder.
"""

from __future__ import annotations

import fcntl
import getpass
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
from workflow_lib.runtime import gpus

logger = logging.getLogger(__name__)

FOLDER = Path("/tmp/everstep-gpus")  # never TMPDIR, which differs between users
POLL_S = 0.5
SILENT_S = 30.0  # a waiting process that is suspended is passed over, and has its place again when it goes on
LEFT_OVER_S = 60.0
TICKET_BYTES = 1 << 16
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@dataclass(frozen=True)
class Ticket:
    """What a process wants and holds. `choice` and `held` are names of the hardware (`gpus.visible`)."""

    number: int
    host: str
    user: str
    pid: int
    who: str
    count: int
    choice: tuple[str, ...]
    held: tuple[str, ...] = ()
    polled: float = 0.0  # time of day at which its process looked last

    def __str__(self) -> str:
        text = f"{shortened(self.who)} (pid {self.pid}, {shortened(self.user)} on {shortened(self.host)})"
        return "".join(letter if letter.isprintable() else "?" for letter in text)  # another user wrote it


@contextmanager
def lease_devices(
    count: int,
    who: str,
    ids: Sequence[str] | None = None,
    *,
    folder: Path | None = None,
    must_stop: Callable[[], object] = bool,
    tell: Callable[[str], None] = logger.info,
    environ: Mapping[str, str] = os.environ,
) -> Iterator[tuple[str, ...]]:
    """Lease `count` GPUs for this process and those forked from it: their entries for CUDA_VISIBLE_DEVICES.

    `who` names the work to others. With `ids` None, the choice is what CUDA_VISIBLE_DEVICES allows. Waits without a
    limit, and gives the reason to `tell` whenever it changes. Raises Stopped once `must_stop` says so, and ConfigError
    where there are never as many. Inside a SLURM job its GPUs are shared out among the processes of that job.
    """
    choice = _choice(count, ids, environ)
    wanted = "a GPU" if count == 1 else f"{count} GPUs"
    folder = folder or FOLDER
    told = None
    with ExitStack() as held:
        with naming(folder):
            place = held.enter_context(_open_folder(folder))
            mine = _Mine(
                place, Ticket(0, socket.gethostname(), _user(), os.getpid(), who, count, tuple(choice.values()))
            )
            held.callback(mine.close)
        while True:
            with naming(folder):
                taken = _taken(_tickets(place), mine.ticket, time.time())
                free = {id: name for id, name in choice.items() if name not in taken}
                if leased := _lock_gpus(place, count, free, held):
                    mine.publish(replace(mine.ticket, held=tuple(choice[id] for id in leased)))
                    break
                mine.touch()
            if (reason := _reason(choice, taken)) != told:
                told = reason
                tell(f"waiting for {wanted}: {reason}")
            if must_stop():
                raise Stopped(
                    f"asked to stop while waiting for {wanted}; nothing was changed. Run the same command again"
                )
            time.sleep(POLL_S)
        yield tuple(leased)


def _choice(count: int, ids: Sequence[str] | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Entries for CUDA_VISIBLE_DEVICES that there are to choose from, each with its name of the hardware."""
    job, given = environ.get("SLURM_JOB_ID"), environ.get(gpus.VISIBLE)
    if ids is not None:
        choice = {id: id for id in ids}
    elif job and given:
        choice = {id: f"job {job}: {id}" for id in given.split(",")}  # numbers that mean nothing outside of the job
    else:
        choice = gpus.visible(environ)
    if len(choice) < count:
        raise ConfigError(f"runtime.nproc: {count} GPUs are needed; there are {', '.join(choice) or 'none'}")
    return choice


class _Mine:
    """The ticket of this process, from the moment that it has a number."""

    def __init__(self, folder: int, ticket: Ticket) -> None:
        self._folder = folder
        self._file = -1
        self.ticket = ticket
        while self._file < 0:
            number = 1 + max(map(_number, os.listdir(folder)), default=0)
            with suppress(FileExistsError):  # another process came first
                self._publish(replace(ticket, number=number), os.link)

    def publish(self, ticket: Ticket) -> None:
        """Others see this ticket, whole and locked, in place of the one before."""
        self._publish(ticket, os.rename)

    def touch(self) -> None:
        """Others see that this process is not suspended."""
        os.utime(self._file)

    def close(self) -> None:
        """The ticket counts for nothing when the processes forked from this one have ended too."""
        if self._file >= 0:
            os.close(self._file)

    def _publish(self, ticket: Ticket, give_name: Callable[..., None]) -> None:
        content, new = json.dumps(asdict(ticket)).encode(), f".{uuid.uuid4().hex}.json"
        with ExitStack() as undo:
            with _for_all_users():
                file = os.open(new, NEW, 0o644, dir_fd=self._folder)
            undo.callback(os.close, file)
            undo.callback(_remove, new, self._folder)
            fcntl.flock(file, fcntl.LOCK_EX)
            os.write(file, content)
            give_name(new, f"{ticket.number:06d}.json", src_dir_fd=self._folder, dst_dir_fd=self._folder)
            undo.pop_all()
        _remove(new, self._folder)
        self.close()
        self.ticket, self._file = ticket, file


def _taken(tickets: Sequence[Ticket], mine: Ticket, now: float) -> dict[str, Ticket]:
    """GPUs that are not to be had, with the ticket that holds each, or that came before and has first choice."""
    others = [ticket for ticket in tickets if ticket.number != mine.number]
    taken = {name: ticket for ticket in others for name in ticket.held}
    for ticket in others:
        if ticket.number < mine.number and not ticket.held and now - ticket.polled < SILENT_S:
            free = [name for name in ticket.choice if name not in taken]
            taken |= dict.fromkeys(free[: ticket.count], ticket)
    return taken


def _lock_gpus(folder: int, count: int, free: Mapping[str, str], held: ExitStack) -> list[str]:
    """Entries of `count` of the free GPUs, locked until `held` closes; none if there are not as many."""
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
    """The GPU's file, locked; None while another process has it."""
    path = f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:200]}.lock"
    with suppress(FileExistsError), _for_all_users():
        os.close(os.open(path, NEW, 0o644, dir_fd=folder))
    with suppress(FileNotFoundError):  # removed by a process that found nobody on it
        file = os.open(path, READ, dir_fd=folder)
        if _lock(file, fcntl.LOCK_EX) and _is_at(file, path, folder):
            return file
        os.close(file)
    return None


def _reason(choice: Mapping[str, str], taken: Mapping[str, Ticket]) -> str:
    """Who has the GPUs of the choice, or comes first."""
    found: dict[Ticket, list[str]] = {}
    for id, name in choice.items():
        if name in taken:
            found.setdefault(taken[name], []).append(id)
    told = [f"{', '.join(ids)} {'held by' if each.held else 'kept for'} {each}" for each, ids in found.items()]
    return "; ".join(told) or "another process is about to take them"


@contextmanager
def _open_folder(path: Path) -> Iterator[int]:
    """The folder, made if it is missing, and locked, which keeps systemd-tmpfiles from ageing what is in it."""
    while True:
        with _for_all_users():
            path.mkdir(mode=0o1777, exist_ok=True)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if _lock(folder, fcntl.LOCK_SH) and _is_at(folder, path):
            break
        os.close(folder)  # it is being aged
        time.sleep(POLL_S)
    try:
        yield folder
    finally:
        _sweep(folder)
        os.close(folder)


def _tickets(folder: int) -> list[Ticket]:
    """Tickets of living processes, in their order."""
    found = []
    for name in filter(_number, os.listdir(folder)):
        with suppress(OSError, ValueError, TypeError, LookupError, RecursionError), _open(name, folder) as file:
            if not _lock(file, fcntl.LOCK_SH):
                found.append(_read(file, _number(name)))
    return sorted(found, key=lambda ticket: ticket.number)


def _sweep(folder: int) -> None:
    """Remove the files that no process locks, as far as this user may.

    Removed under an exclusive lock: who has locked a file that is gone from its name has locked nothing (`_is_at`).
    """
    for name in os.listdir(folder):
        if re.fullmatch(r"[A-Za-z0-9_-]+\.lock|\d{6,}\.json", name) or _is_left_over(name, folder):
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
    """The open file is the one of that name still."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(name, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


@contextmanager
def _for_all_users() -> Iterator[None]:
    """What is made in the block has the permissions it was made with; they are right from the first moment."""
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
    """The number of a ticket's file; 0 for any other name."""
    match = re.fullmatch(r"(\d{6,})\.json", name)
    return int(match[1]) if match else 0


def _is_left_over(name: str, folder: int) -> bool:
    """Whether the file was never given its name by a process that was killed, a minute ago or longer."""
    if not re.fullmatch(r"\.[0-9a-f]{32}\.json", name):
        return False
    with suppress(OSError):
        return time.time() - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime > LEFT_OVER_S
    return False


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
