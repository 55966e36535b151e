"""GPUs of this machine are leased: no two trainings compute on one, whoever started them and from whichever folder.

    /tmp/everstep-gpus/turnstile      locked for the moment in which tickets are read or written
    /tmp/everstep-gpus/000012.json    a ticket: who wants how many of which GPUs, and those it holds

A ticket counts while its file is locked (flock). The kernel releases that lock when the process that made the ticket
and all that were forked from it are gone, however they ended. GPUs are given in the order of the tickets: what is free
is kept for those that came earlier, so a training that needs four is not overtaken for ever by others that need one.

The folder is for all users (mode 1777, like /tmp), and nobody writes to a file of another. Processes in containers take
part where they share the host's /tmp, as with Apptainer; for Docker, mount the folder.
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
BRIEFLY_S = 0.01
SILENT_S = 30.0  # a waiting process that is suspended is passed over, and has its place again when it goes on
TICKET_BYTES = 1 << 16


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
    ticket = Ticket(0, socket.gethostname(), _user(), os.getpid(), who, count, tuple(choice.values()))
    folder = folder or FOLDER

    def check() -> None:
        if must_stop():
            raise Stopped(f"asked to stop while waiting for {wanted}; nothing was changed. Run the same command again")

    with ExitStack() as held:
        with naming(folder):
            place = held.enter_context(_open_folder(folder, check))
            with _turnstile(place, check):
                file, ticket = held.enter_context(_draw(place, ticket))
        told = None
        while True:
            with naming(folder), _turnstile(place, check):
                os.utime(file)
                taken = _taken(_tickets(place), ticket, time.time())
                free = [id for id, name in choice.items() if name not in taken][:count]
                if len(free) == count:
                    _write(file, replace(ticket, held=tuple(choice[id] for id in free)))
                    break
            if (reason := _reason(choice, taken)) != told:
                told = reason
                tell(f"waiting for {wanted}: {reason}")
            check()
            time.sleep(POLL_S)
        yield tuple(free)


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


def _taken(tickets: Sequence[Ticket], mine: Ticket, now: float) -> dict[str, Ticket]:
    """GPUs that are not to be had, with the ticket that holds each, or that came before and has first choice."""
    others = [ticket for ticket in tickets if ticket.number != mine.number]
    taken = {name: ticket for ticket in others for name in ticket.held}
    for ticket in others:
        if ticket.number < mine.number and not ticket.held and now - ticket.polled < SILENT_S:
            free = [name for name in ticket.choice if name not in taken]
            taken |= dict.fromkeys(free[: ticket.count], ticket)
    return taken


def _reason(choice: Mapping[str, str], taken: Mapping[str, Ticket]) -> str:
    """Who has the GPUs of the choice, or comes first."""
    found: dict[Ticket, list[str]] = {}
    for id, name in choice.items():
        if name in taken:
            found.setdefault(taken[name], []).append(id)
    return "; ".join(
        f"{', '.join(ids)} {'held by' if ticket.held else 'kept for'} {ticket}" for ticket, ids in found.items()
    )


@contextmanager
def _open_folder(path: Path, check: Callable[[], None]) -> Iterator[int]:
    """The folder, made if it is missing, and locked, which keeps systemd-tmpfiles from ageing what is in it.

    Dead tickets are removed on the way out, also that of this process.
    """
    while True:
        with _for_all_users():
            path.mkdir(mode=0o1777, exist_ok=True)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with suppress(FileNotFoundError):  # it has just been removed, or is being aged
            if _lock(folder, fcntl.LOCK_SH) and os.path.samestat(os.fstat(folder), path.lstat()):
                break
        os.close(folder)
        check()
        time.sleep(BRIEFLY_S)
    try:
        yield folder
    finally:
        _sweep(folder)
        os.close(folder)


@contextmanager
def _turnstile(folder: int, check: Callable[[], None]) -> Iterator[None]:
    """No other process reads or changes tickets in the block; until then `check` is called."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(FileExistsError):
        os.close(_create(folder, "turnstile"))
    file = os.open("turnstile", flags, dir_fd=folder)
    try:
        while not _lock(file, fcntl.LOCK_EX):
            check()
            time.sleep(BRIEFLY_S)
        yield
    finally:
        os.close(file)


@contextmanager
def _draw(folder: int, ticket: Ticket) -> Iterator[tuple[int, Ticket]]:
    """The ticket with the next number, and its file, which is locked until the last process has closed it."""
    ticket = replace(ticket, number=1 + max(map(_number, os.listdir(folder)), default=0))
    file = _create(folder, f"{ticket.number:06d}.json")
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        _write(file, ticket)
        yield file, ticket
    finally:
        os.close(file)


def _tickets(folder: int) -> list[Ticket]:
    """Tickets of living processes, in their order. Those of dead ones are removed where this user may."""
    found = []
    for name in sorted(filter(_number, os.listdir(folder)), key=_number):
        try:
            file = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except OSError:
            continue  # no ticket
        try:
            if _lock(file, fcntl.LOCK_SH):
                with suppress(OSError):
                    os.unlink(name, dir_fd=folder)
            else:
                found.append(_read(file, _number(name)))
        except (OSError, ValueError, TypeError, RecursionError):
            continue  # nothing that this program has written
        finally:
            os.close(file)
    return found


def _sweep(folder: int) -> None:
    """Remove what the process leaves behind, unless others are at it: the next one will."""

    def give_up() -> None:
        raise BlockingIOError

    with suppress(OSError), _turnstile(folder, give_up):
        _tickets(folder)


def _create(folder: int, name: str) -> int:
    """A new file that every user may read, and so lock."""
    with _for_all_users():
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder)


@contextmanager
def _for_all_users() -> Iterator[None]:
    """What is made in the block has the permissions it was made with; they are right from the first moment."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def _write(file: int, ticket: Ticket) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(asdict(ticket)).encode(), 0)


def _read(file: int, number: int) -> Ticket:
    content = json.loads(os.pread(file, TICKET_BYTES, 0))
    names = {key: tuple(map(str, content[key])) for key in ("choice", "held")}
    return decoded(Ticket, {**content, **names, "number": number, "polled": os.fstat(file).st_mtime})


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


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
