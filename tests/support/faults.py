"""Faults at operations on files: a process is killed, power is cut, or the disk returns an error.

Python announces most operations on files by audit events; the package announces writes and syncs by
``sys.audit("everstep", "write" or "fsync", path)``. An audit hook counts the operations that match a fault. The faults
at named points of the code are those of `workflow_lib.prove.faults`.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from threading import Lock, get_ident
from typing import Any, Literal

from workflow_lib.prove import faults as points
from workflow_lib.prove.faults import Fault, Target, current_rank, send

FILE_EVENTS = ("write", "fsync")
Mode = Literal["before", "torn", "unsynced", "unnamed", "ENOSPC", "EIO", "EROFS", "EDQUOT"]


@dataclass(frozen=True)
class FileFault:
    """Strike before the ``count``-th matching operation of that rank (-1: the launcher). The modes:

    before      kill the process
    torn        kill it, and truncate unsynced content: a part of it remains
    unsynced    kill it, and remove all unsynced content: a power cut after directories were written
    unnamed     kill it, and undo unsynced names: a power cut before directories were written
    ENOSPC ...  let the operation, and the matching ones after it, fail with that error: ``times`` in all, 0 for all
    """

    mode: Mode
    path: str = "*"
    operation: str | None = None
    count: int = 1
    rank: int = 0
    target: Target = "self"
    part: float = 0.5
    times: int = 1


class Journal:
    """The files and names that this process has written and not yet synced: a power cut may lose them."""

    def __init__(self) -> None:
        self._safe_bytes: dict[str, int] = {}
        self._unsafe_names: list[tuple[str, Callable[[], None]]] = []

    def note(self, operation: str, path: str, other: str | None) -> None:
        """Record the operation as done."""
        folder = os.path.dirname(path)
        if operation == "write" and path not in self._safe_bytes:
            self._safe_bytes[path] = os.path.getsize(path) if os.path.exists(path) else 0
        elif operation == "open":
            is_new = not os.path.exists(path)
            self._safe_bytes.setdefault(path, 0 if is_new else os.path.getsize(path))
            if is_new:
                self._unsafe_names.append((folder, partial(os.remove, path)))
        elif operation == "fsync":
            self._safe_bytes.pop(path, None)
        elif operation == "fsync folder":
            self._unsafe_names = [(where, undo) for where, undo in self._unsafe_names if where != path]
        elif operation == "mkdir":
            self._unsafe_names.append((folder, partial(os.rmdir, path)))
        elif operation == "rename" and other is not None:
            self._unsafe_names.append((os.path.dirname(other), partial(os.rename, other, path)))
            self._safe_bytes.pop(other, None)  # the replaced file is gone
            for old in [old for old in self._safe_bytes if old == path or old.startswith(path + os.sep)]:
                self._safe_bytes[other + old[len(path) :]] = self._safe_bytes.pop(old)
        elif operation == "link" and other is not None:
            self._unsafe_names.append((os.path.dirname(other), partial(os.remove, other)))
            if path in self._safe_bytes:
                self._safe_bytes[other] = self._safe_bytes[path]
        elif operation == "remove":
            self._safe_bytes.pop(path, None)

    def cut(self, part: float | None) -> None:
        """Truncate each file to its synced bytes and this part of the unsynced ones; None: to its synced bytes."""
        for path, safe in self._safe_bytes.items():
            try:
                size = os.path.getsize(path)
                if size > safe:
                    left = 0 if part is None else min(max(1, int((size - safe) * part)), size - safe - 1)
                    os.truncate(path, safe + left)
            except OSError:
                continue  # removed or renamed since, perhaps this moment by another thread

    def forget_names(self) -> None:
        """Undo the creations, renames and links whose directory was not synced, the last one first."""
        for _, undo in reversed(self._unsafe_names):
            try:
                undo()
            except OSError:
                continue  # removed or replaced since


def install(faults: Sequence[Fault | FileFault] = (), seen_operation: Callable[[str, str], None] | None = None) -> None:
    """Let each fault strike once, in this process or in one forked from it; report operations to the callable."""
    points.install([fault for fault in faults if isinstance(fault, Fault)])
    seen = {fault: 0 for fault in faults if isinstance(fault, FileFault)}
    if not seen and seen_operation is None:
        return
    journal = Journal()
    busy: set[int] = set()  # threads inside the hook, whose own operations are not counted
    alone = Lock()  # the threads of a process share the journal; during a strike none begins another operation
    os.register_at_fork(before=alone.acquire, after_in_parent=alone.release, after_in_child=alone.release)

    def at_file(operation: str, path: str, other: str | None) -> None:
        if seen_operation is not None:
            seen_operation(operation, path)
        for fault in seen:
            if _matches(fault, operation, path):
                seen[fault] += 1
                after = seen[fault] - fault.count
                if after == 0 or (after > 0 and fault.mode.isupper() and (not fault.times or after < fault.times)):
                    _strike(fault, journal, operation, path)
        journal.note(operation, path, other)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if get_ident() not in busy and (found := _operation(event, arguments)):
            busy.add(get_ident())
            try:
                with alone:
                    at_file(*found)
            finally:
                busy.discard(get_ident())

    sys.addaudithook(watch)


def from_json(value: Mapping[str, Any]) -> Fault | FileFault:
    """Return the fault that the object describes."""
    return Fault(**value) if "point" in value else FileFault(**value)


def _matches(fault: FileFault, operation: str, path: str) -> bool:
    return fault.rank == current_rank() and fault.operation in (None, operation) and fnmatch(path, fault.path)


def _strike(fault: FileFault, journal: Journal, operation: str, path: str) -> None:
    if fault.mode.isupper():
        number = getattr(errno, fault.mode)
        # the errors of write(2) and fsync(2) have no file name, as they get a descriptor
        named = () if operation in FILE_EVENTS else (path,)
        raise OSError(number, os.strerror(number), *named)
    if fault.target == "group":
        _stop_launcher()
    if fault.mode == "torn":
        journal.cut(fault.part)
    elif fault.mode == "unsynced":
        journal.cut(None)
    elif fault.mode == "unnamed":
        journal.forget_names()
    send(fault.target, signal.SIGKILL)


def _stop_launcher() -> None:
    """Stop the launcher of this rank: in a power cut all processes end at the same moment."""
    if current_rank() >= 0:
        os.kill(os.getppid(), signal.SIGSTOP)


def _operation(event: str, arguments: tuple[Any, ...]) -> tuple[str, str, str | None] | None:
    """Return the operation that the event announces, its path, and the second path of a rename or link."""
    if event == "everstep":
        return (arguments[0], os.path.abspath(arguments[1]), None) if arguments[0] in FILE_EVENTS else None
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, int) or path is None:
            return None
        if flags & (os.O_WRONLY | os.O_RDWR):
            return "open", _absolute(path), None
        return "fsync folder" if flags & os.O_DIRECTORY else "read", _absolute(path), None
    if event in ("os.rename", "os.link"):
        return event[3:], _absolute(arguments[0]), _absolute(arguments[1])
    if event in ("os.remove", "os.rmdir"):
        return event[3:], _absolute(arguments[0], arguments[1]), None
    if event == "os.mkdir":
        return "mkdir", _absolute(arguments[0]), None
    return None


def _absolute(path: Any, folder: int = -1) -> str:
    """Return the absolute path; ``folder`` is the descriptor of the directory it is relative to (shutil.rmtree)."""
    name = os.fsdecode(path)
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name) if folder >= 0 else os.path.abspath(name)
