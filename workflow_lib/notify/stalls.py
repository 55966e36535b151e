"""Trainings without progress, seen from outside: an attempt whose process was alive, and whose step does not change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from workflow_lib.files import UNREADABLE
from workflow_lib.store import attempts, layout
from workflow_lib.text import duration


@dataclass(frozen=True)
class Stalled:
    """A training without progress."""

    run: str
    attempt: str
    step: int | None
    seconds: float
    place: str

    def __str__(self) -> str:
        at = "before its first step" if self.step is None else f"at step {self.step:,}"
        return f"run {self.run[:12]}: no new step for {duration(self.seconds)}, {at} ({self.place})"


@dataclass
class _Seen:
    attempt: str
    step: int | None
    beat: float | None  # seconds of the attempt at its last heartbeat
    since_s: float  # when this step was first seen
    was_alive: bool = False


class Stalls:
    """Finds trainings without a new optimizer step, each attempt once.

    An attempt counts after its heartbeat has changed: that of a process which was killed long ago does not.
    """

    def __init__(self, limit_s: float, work: Path) -> None:
        self._limit_s, self._work = limit_s, work
        self._seen: dict[str, _Seen] = {}
        self._found: set[str] = set()

    def find(self, runs: Iterable[str], now_s: float) -> list[Stalled]:
        """Return the runs, given by their digests, that have stalled since the last call; `now_s` is monotonic."""
        found = []
        for run in runs:
            newest = self._newest(run)
            if newest is None or newest.ended is not None:
                self._seen.pop(run, None)
                continue
            seen = self._seen.get(run)
            if seen is None or (seen.attempt, seen.step) != (newest.attempt, newest.reached):
                was_alive = seen is not None and seen.attempt == newest.attempt
                seen = _Seen(newest.attempt, newest.reached, newest.seconds, now_s, was_alive)
                self._seen[run] = seen
            seen.was_alive |= newest.seconds != seen.beat
            silent_s = now_s - seen.since_s
            if seen.was_alive and silent_s >= self._limit_s and newest.attempt not in self._found:
                self._found.add(newest.attempt)
                place = f"host {newest.host}" + (f", job {newest.job}" if newest.job else "")
                found.append(Stalled(run, newest.attempt, newest.reached, silent_s, place))
        return found

    def _newest(self, run: str) -> attempts.Attempt | None:
        try:
            found = [a for path in layout.workspaces(self._work, run) for a in attempts.list_attempts(path)]
        except UNREADABLE:
            return None
        return max(found, key=lambda attempt: attempt.began, default=None)
