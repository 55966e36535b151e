"""Logging to the terminal or the job's log, and to the events file of the workspace.

Snakemake truncates a job's log at each start; the events file is appended to, and shortened when it is large.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from workflow_lib.distributed.ranks import Ranks
from workflow_lib.files import append_line, write_atomic
from workflow_lib.store.attempts import utc_now

NAME = "workflow_lib"
PREFIX = "everstep-"
LEVELS = {"debug": "debug", "info": "info", "warning": "warn", "error": "error", "critical": "fatal"}
LARGE_BYTES, NEWEST_BYTES = 1 << 24, 1 << 20
FOR_NOW = ("progress", "log")  # kinds that nobody reads once they are old
LOGGED_S = 60.0  # of the old times of steps, which trackers copy, one in so many seconds is kept
logger = logging.getLogger(__name__)


class EventLog:
    """Appends each event as a JSON line, in a single write, so that the lines of several processes never mix."""

    def __init__(self, path: Path, **common: Any) -> None:
        self.path = path
        self._common = common
        self._shortened_bytes = 0

    def append(self, kind: str, **fields: Any) -> None:
        """Append the event; if the disk rejects it, only log a warning."""
        event = {"time": utc_now(), "kind": kind} | self._common | fields
        line = json.dumps(event, ensure_ascii=False, default=str) + "\n"
        try:
            append_line(self.path, line.encode())
        except OSError as error:
            logger.warning("event not recorded: %s", error, extra={"to_events": False})  # no recursion

    def shorten(self) -> None:
        """Drop messages and progress from a large file, except for its newest part. For one process at a time.

        It is large if it also has twice the bytes that the last call has left.
        """
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size <= max(LARGE_BYTES, 2 * self._shortened_bytes):
                    return
                content = file.read()
                content = content[: content.rfind(b"\n") + 1]  # without a line that is just being written
                file.seek(len(content))
                old = content.rfind(b"\n", 0, len(content) - NEWEST_BYTES) + 1
                pieces = [*_kept(content[:old].splitlines(keepends=True)), content[old:]]
                write_atomic(self.path, pieces)
                self._shortened_bytes = sum(map(len, pieces))
                if late := file.read():  # from processes that had opened the old file
                    append_line(self.path, late)
        except OSError as error:
            logger.warning("events not shortened: %s", error, extra={"to_events": False})


def _kept(lines: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the lines of a large file that are read when they are old."""
    logged_at = -LOGGED_S
    for line in lines:
        if (event := _event(line)) is None or event.get("kind") in FOR_NOW:
            continue
        if event.get("kind") == "logged":
            at = datetime.fromisoformat(event["time"]).timestamp()
            if abs(at - logged_at) < LOGGED_S:  # the clock may have been set
                continue
            logged_at = at
        yield line


def read_events(path: Path, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """Return the events of the file or of its last bytes, oldest first; partial lines are skipped."""
    return [event for line in _tail(path, last_bytes).splitlines() if (event := _event(line)) is not None]


def last_event(path: Path, kinds: Sequence[str], last_bytes: int) -> dict[str, Any] | None:
    """Return the newest event of these kinds in the last bytes, or None."""
    events = (_event(line) for line in reversed(_tail(path, last_bytes).splitlines()))
    return next((event for event in events if event is not None and event.get("kind") in kinds), None)


class Follower:
    """Reads the events that are appended to a file, and those in its last bytes; a line counts once it is complete.

    Without a number of bytes, all events are read. Of another file that takes the name, those that are later are read.
    """

    def __init__(self, path: Path, *, last_bytes: int | None = None) -> None:
        self._path = path
        self._offset = max(0, path.stat().st_size - last_bytes) if last_bytes is not None and path.exists() else 0
        self._file: os.stat_result | None = None
        self._newest = ""

    def new(self) -> list[dict[str, Any]]:
        """Return the events since the last call, oldest first; none while the file is missing."""
        try:
            with self._path.open("rb") as file:
                state, known = os.fstat(file.fileno()), ""
                if state.st_size < self._offset or (self._file and not os.path.samestat(self._file, state)):
                    self._offset, known = 0, self._newest  # another file has its name now
                self._file = state
                file.seek(self._offset)
                lines, end, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._offset += len(lines + end)
        found = [event for line in lines.splitlines() if (event := _event(line)) is not None]
        new = [event for event in found if not known or str(event.get("time", "")) > known]
        self._newest = max([self._newest, *(str(event.get("time", "")) for event in new)])
        return new


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _tail(path: Path, last_bytes: int | None) -> bytes:
    """Return the last bytes of the file, or all of them; no bytes if the file is missing."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return b""
    with file:
        if last_bytes is not None:
            file.seek(max(0, os.fstat(file.fileno()).st_size - last_bytes))
        return file.read()


class LineHandler(logging.Handler):
    """Writes lines like `2026-01-01T00:00:00 info  message` to the current standard error."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.set_name(PREFIX + "lines")
        place = f"[rank {rank}] " if rank else ""
        line = f"%(asctime)s %(word)-5s {place}%(message)s"
        self.setFormatter(logging.Formatter(line, "%Y-%m-%dT%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        record.word = LEVELS.get(record.levelname.lower(), record.levelname.lower())
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except OSError:
            self.handleError(record)


class EventHandler(logging.Handler):
    """Appends each message to the events file."""

    def __init__(self, events: EventLog) -> None:
        super().__init__()
        self.set_name(PREFIX + "events")
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "to_events", True):
            self._events.append("log", level=record.levelname.lower(), message=record.getMessage())


@contextmanager
def open_log(level: str, ranks: Ranks, events: EventLog) -> Iterator[logging.Logger]:
    """Open the package's log: messages from `level` up in the main process, only warnings in the others.

    Replaces the handlers of an earlier call or of the parent of a forked rank, and restores them at the end.
    """
    log = logging.getLogger(NAME)
    earlier = [handler for handler in log.handlers if (handler.get_name() or "").startswith(PREFIX)]
    earlier_level = log.level
    own = [LineHandler(ranks.rank), EventHandler(events)]
    _replace_handlers(log, earlier, own)
    number = logging.getLevelName(level.upper())
    log.setLevel(number if ranks.is_main else max(number, logging.WARNING))
    try:
        yield log
    finally:
        _replace_handlers(log, own, earlier)
        log.setLevel(earlier_level)


def _replace_handlers(log: logging.Logger, old: list[logging.Handler], new: list[logging.Handler]) -> None:
    for handler in old:
        log.removeHandler(handler)
    for handler in new:
        log.addHandler(handler)
