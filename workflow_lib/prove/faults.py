"""Faults on purpose: a process that is killed, or refused by the disk, to see whether the run survives it.

    python -m workflow_lib.prove.faults '{"point": "optimizer", "count": 7, "signal": "SIGKILL"}' train --run ...
    python -m workflow_lib.prove.faults '{"path": "*/checkpoints/*", "count": 12, "mode": "torn"}' train --run ...

runs a verb with an audit hook. A ``Fault`` watches the points which the code names by ``sys.audit("everstep", point)``;
a ``FileFault`` counts operations on files, which Python itself announces, and at one of them ends the process as a
kill or a power cut would, or lets the disk refuse. The hook is installed in the launcher and inherited by the ranks.
No training imports this module.
"""

from __future__ import annotations

import errno
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from threading import get_ident
from typing import Any, Literal

Target = Literal["self", "launcher", "group"]
FILE_EVENTS = ("write", "fsync")
Mode = Literal["before", "torn", "unsynced", "unnamed", "ENOSPC", "EIO", "EROFS", "EDQUOT"]


@dataclass(frozen=True)
class Fault:
    """The ``count``-th time that a process of that rank is at the point, the target gets the signal."""

    point: str
    count: int = 1
    signal: str = "SIGKILL"
    rank: int = 0
    from_step: int = 0  # not before so many optimizer steps are done
    target: Target = "self"

    def strike(self) -> None:
        """The signal is sent; SIGKILL to this process does not return."""
        _send(self.target, signal.Signals[self.signal])


@dataclass(frozen=True)
class FileFault:
    """At the ``count``-th matching operation of that rank (-1: the launcher), before it is done:

    before      the process is killed
    torn        and of what was not synced only a part is there
    unsynced    and nothing is there of what was not synced: a power cut, in which names outlived contents
    unnamed     and what was not synced has no name: a power cut, in which directories were written last
    ENOSPC ...  the operation fails with that error, and so do the next ones, ``times`` in all (0: for ever)
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
    """What a power cut would leave of the files that this process has written."""

    def __init__(self) -> None:
        self._safe_bytes: dict[str, int] = {}
        self._unsafe_names: list[tuple[str, Callable[[], None]]] = []

    def note(self, operation: str, path: str, other: str | None) -> None:
        """The operation is taken as done."""
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
            self._safe_bytes.pop(other, None)  # what was there is gone
            for old in [old for old in self._safe_bytes if old == path or old.startswith(path + os.sep)]:
                self._safe_bytes[other + old[len(path) :]] = self._safe_bytes.pop(old)
        elif operation == "link" and other is not None:
            self._unsafe_names.append((os.path.dirname(other), partial(os.remove, other)))
            if path in self._safe_bytes:
                self._safe_bytes[other] = self._safe_bytes[path]
        elif operation == "remove":
            self._safe_bytes.pop(path, None)

    def cut(self, part: float | None) -> None:
        """Of what was not synced, this part is left; nothing if None."""
        for path, safe in self._safe_bytes.items():
            size = os.path.getsize(path) if os.path.exists(path) else 0
            if size > safe:
                kept = 0 if part is None else min(max(1, int((size - safe) * part)), size - safe - 1)
                os.truncate(path, safe + kept)

    def forget_names(self) -> None:
        """Names that no synced folder holds are gone."""
        for _, undo in reversed(self._unsafe_names):
            try:
                undo()
            except OSError:
                continue  # it was removed, or replaced, in the meantime


def install(faults: Sequence[Fault | FileFault], seen_operation: Callable[[str, str], None] | None = None) -> None:
    """Each fault strikes once, in this process or in one forked from it; operations are told to the callable."""
    seen: dict[Fault | FileFault, int] = dict.fromkeys(faults, 0)
    is_files_watched = seen_operation is not None or any(isinstance(fault, FileFault) for fault in faults)
    journal = Journal()
    busy: set[int] = set()  # threads whose own operations here are not counted
    step = 0

    def at_point(point: str, *given: Any) -> None:
        nonlocal step
        if point == "commit":
            step = given[0].progress.cursor.step
        for fault in seen:
            if not isinstance(fault, Fault) or (fault.point, fault.rank) != (point, _rank()):
                continue
            if step >= fault.from_step:
                seen[fault] += 1
                if seen[fault] == fault.count:
                    fault.strike()

    def at_file(operation: str, path: str, other: str | None) -> None:
        if seen_operation is not None:
            seen_operation(operation, path)
        for fault in seen:
            if isinstance(fault, FileFault) and _matches(fault, operation, path):
                seen[fault] += 1
                after = seen[fault] - fault.count
                if after == 0 or (after > 0 and fault.mode.isupper() and (not fault.times or after < fault.times)):
                    _break(fault, journal, operation, path)
        journal.note(operation, path, other)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "everstep" and arguments[0] not in FILE_EVENTS:
            at_point(*arguments)
        elif is_files_watched and get_ident() not in busy and (found := _operation(event, arguments)):
            busy.add(get_ident())
            try:
                at_file(*found)
            finally:
                busy.discard(get_ident())

    sys.addaudithook(watch)


def from_json(value: Mapping[str, Any]) -> Fault | FileFault:
    """The fault that the object describes."""
    return Fault(**value) if "point" in value else FileFault(**value)


def main() -> None:
    """Runs a verb with the faults of the first argument, a JSON object or a list of them."""
    given = json.loads(sys.argv[1])
    install([from_json(one) for one in (given if isinstance(given, list) else [given])])
    del sys.argv[1]
    runpy.run_module("workflow_lib", run_name="__main__", alter_sys=True)


def _rank() -> int:
    return int(os.environ.get("RANK", "-1"))


def _matches(fault: FileFault, operation: str, path: str) -> bool:
    return fault.rank == _rank() and fault.operation in (None, operation) and fnmatch(path, fault.path)


def _break(fault: FileFault, journal: Journal, operation: str, path: str) -> None:
    if fault.mode.isupper():
        number = getattr(errno, fault.mode)
        named = () if operation in FILE_EVENTS else (path,)  # as the system does: of a write it knows no name
        raise OSError(number, os.strerror(number), *named)
    if fault.target == "group":
        _stop_others()
    if fault.mode == "torn":
        journal.cut(fault.part)
    elif fault.mode == "unsynced":
        journal.cut(None)
    elif fault.mode == "unnamed":
        journal.forget_names()
    _send(fault.target, signal.SIGKILL)


def _send(target: Target, number: signal.Signals) -> None:
    if target == "group":
        os.killpg(os.getpgid(0), number)
    else:
        os.kill(os.getppid() if target == "launcher" else os.getpid(), number)


def _stop_others() -> None:
    """The launcher does nothing more: in a power cut all processes end at one moment."""
    if _rank() >= 0:
        os.kill(os.getppid(), signal.SIGSTOP)


def _operation(event: str, arguments: tuple[Any, ...]) -> tuple[str, str, str | None] | None:
    """What is about to happen to which file: operation, path, and the second path of a rename or link."""
    if event == "everstep":
        return arguments[0], os.path.abspath(arguments[1]), None
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
    """The whole path; ``folder`` is an open directory that it starts from, as in ``shutil.rmtree``."""
    name = os.fsdecode(path)
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name) if folder >= 0 else os.path.abspath(name)


if __name__ == "__main__":
    main()
