"""What happens is said once on the terminal or in the job's log, and kept for good in the workspace's events.

A job's log is truncated by the workflow engine at each start; the events file is only ever appended to.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workflow_lib.distributed.ranks import Ranks
from workflow_lib.store.attempts import utc_now

NAME = "workflow_lib"
PREFIX = "everstep-"
LEVELS = {"debug": "debug", "info": "info", "warning": "warn", "error": "error", "critical": "fatal"}
logger = logging.getLogger(__name__)


class EventLog:
    """Appends one JSON line an event, in one write, so that the lines of several processes never mix."""

    def __init__(self, path: Path, **common: Any) -> None:
        self.path = path
        self._common = common

    def append(self, kind: str, **fields: Any) -> None:
        """The event is in the file; where the disk refuses it, a warning says so and the work goes on."""
        event = {"time": utc_now(), "kind": kind} | self._common | fields
        line = json.dumps(event, ensure_ascii=False, default=str) + "\n"
        try:
            self._write(line.encode())
        except OSError as error:
            logger.warning("event not kept: %s", error, extra={"to_events": False})

    def _write(self, line: bytes) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, b"\n" * is_torn + line)  # a neighbour still writing looks torn: an empty line
        finally:
            os.close(descriptor)


def read_events(path: Path, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """The events, oldest first, or those in the last bytes; a line that is torn is passed over."""
    return [event for line in _tail(path, last_bytes).splitlines() if (event := _event(line)) is not None]


def last_event(path: Path, kinds: Sequence[str], last_bytes: int) -> dict[str, Any] | None:
    """The newest event of these kinds in the last bytes; None if there is none."""
    events = (_event(line) for line in reversed(_tail(path, last_bytes).splitlines()))
    return next((event for event in events if event is not None and event.get("kind") in kinds), None)


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _tail(path: Path, last_bytes: int | None) -> bytes:
    """The last bytes of the file, or all of them; none where there is no file."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return b""
    with file:
        if last_bytes is not None:
            file.seek(max(0, os.fstat(file.fileno()).st_size - last_bytes))
        return file.read()


class LineHandler(logging.Handler):
    """Writes `2026-01-01T00:00:00 info  message` to what is the standard error at that moment."""

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
    """Keeps each message in the events file."""

    def __init__(self, events: EventLog) -> None:
        super().__init__()
        self.set_name(PREFIX + "events")
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "to_events", True):
            self._events.append("log", level=record.levelname.lower(), message=record.getMessage())


@contextmanager
def open_log(level: str, ranks: Ranks, events: EventLog) -> Iterator[logging.Logger]:
    """The package's log: everything from `level` up in the main process, warnings only in the others.

    Replaces what an earlier call, or the parent of a forked rank, has set up, and puts it back at the end.
    """
    log = logging.getLogger(NAME)
    earlier = [handler for handler in log.handlers if (handler.get_name() or "").startswith(PREFIX)]
    earlier_level = log.level
    own = [LineHandler(ranks.rank), EventHandler(events)]
    _exchange(log, earlier, own)
    wanted = logging.getLevelName(level.upper())
    log.setLevel(wanted if ranks.is_main else max(wanted, logging.WARNING))
    try:
        yield log
    finally:
        _exchange(log, own, earlier)
        log.setLevel(earlier_level)


def _exchange(log: logging.Logger, old: list[logging.Handler], new: list[logging.Handler]) -> None:
    for handler in old:
        log.removeHandler(handler)
    for handler in new:
        log.addHandler(handler)
