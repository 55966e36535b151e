"""A few integers in memory that the launcher and its ranks on one node share.

A signal handler only sets one of them. The ranks read it when they poll, so no signal has to be forwarded. Counters of
progress show which ranks hang.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.sharedctypes import RawArray
from types import FrameType
from typing import NamedTuple

import psutil

from workflow_lib.runtime.clock import now_s

MARGIN_S = 30.0  # for start, end and jitter; a quarter of the limit if that is less
CPU_CHECK_S = 1.0  # seconds between two checks of the CPU time of a rank
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class SharedState:
    """State shared by a launcher and the ranks forked from it. It needs no lock: each entry has one writer."""

    def __init__(self, local_world_size: int, limit_s: float | None = None) -> None:
        self._limit_s = limit_s
        self._began = time.monotonic()  # the same clock in all processes of one host
        self._stop = RawArray("q", 1)
        self._pids = RawArray("q", local_world_size)
        self._left = RawArray("q", local_world_size)
        self._progress = RawArray("q", local_world_size)
        self._first = RawArray("q", 1)
        self._steps = RawArray("q", local_world_size)
        self._ready = RawArray("d", 1)

    @property
    def stop_signal(self) -> int:
        """The signal that asked the run to stop, or 0."""
        return int(self._stop[0])

    def stop_on_signals(self) -> None:
        """Let the signals that end a job only set ``stop_signal``, here and in every rank forked later."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    def is_past_deadline(self, save_s: float) -> bool:
        """Return True if no more time is left than a save may need; the longest so far took ``save_s`` seconds."""
        if self._limit_s is None:
            return False
        # three times the longest save, since the last one may take longer
        margin_s = min(MARGIN_S, self._limit_s / 4) + 3 * save_s
        return time.monotonic() - self._began >= self._limit_s - margin_s

    def enter(self, local_rank: int) -> None:
        """Register the calling process as the rank."""
        self._pids[local_rank] = os.getpid()

    def leave(self, local_rank: int) -> None:
        """Record that the rank has finished, so that its exit is not taken for a failure."""
        self._left[local_rank] = 1

    def start_at(self, step: int) -> None:
        """Record that this attempt starts to train now, from this step."""
        self._first[0] = self._steps[0] = step
        self._ready[0] = now_s()

    def tick(self, local_rank: int, step: int) -> None:
        """Count progress of the rank. ``step`` is the number of optimizer steps of the run that are done."""
        self._progress[local_rank] += 1
        self._steps[local_rank] = step

    def step_of(self, local_rank: int) -> int:
        """Return the number of optimizer steps that the rank reported last."""
        return int(self._steps[local_rank])

    @contextmanager
    def working(self, local_rank: int) -> Iterator[None]:
        """Count progress of the rank while it or its children use the CPU: a long compilation is not a hang."""
        ended = threading.Event()

        def tick() -> None:
            seen = _cpu_s()
            while not ended.wait(CPU_CHECK_S):
                now = _cpu_s()
                if now - seen > CPU_CHECK_S / 10:  # a process that only waits uses less
                    seen = now
                    self._progress[local_rank] += 1

        thread = threading.Thread(target=tick, name="working", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @property
    def pids(self) -> list[int]:
        """Process id of each local rank; 0 before it has started."""
        return list(self._pids)

    @property
    def has_left(self) -> bool:
        """True if at least one rank is done."""
        return any(self._left)

    @property
    def progress(self) -> list[int]:
        """Progress counter of each local rank; only changes are meaningful."""
        return list(self._progress)

    @property
    def step_range(self) -> StepRange | None:
        """Steps of this attempt so far; None before the first step."""
        return StepRange(self._first[0], self._steps[0], self._ready[0]) if self._ready[0] else None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._stop[0] = number


def _cpu_s() -> float:
    """Return the CPU seconds that this process and its living descendants have used."""
    total, me = 0.0, psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):
            used = process.cpu_times()
            ended = getattr(used, "children_user", 0.0) + getattr(used, "children_system", 0.0)
            total += used.user + used.system + ended
    return total


class StepRange(NamedTuple):
    """Optimizer steps of the run that were done when an attempt started to train (at ``ready``) and at its end."""

    first: int
    last: int
    ready: float
