"""What the launcher and its ranks on one node tell each other: a few integers in shared memory.

A signal handler only sets one of them. The ranks look at it between two steps, so no signal has to be forwarded, and
a rank that does not move can be told from one that works.
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

MARGIN_S = 30.0  # for what comes before and after the training, and for jitter; a quarter of short limits
WORK_S = 1.0  # between two checks of the CPU time of a rank
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class SharedState:
    """Shared by a launcher and the ranks forked from it."""

    def __init__(self, local_world_size: int, limit_s: float | None = None) -> None:
        self._limit_s = limit_s
        self._began = time.monotonic()  # which processes of one host share
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
        """Signals that ask a job to end set the flag, here and in every rank forked later."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    def is_past_deadline(self, save_s: float) -> bool:
        """Whether what is left of the job's time is just enough to save, which takes ``save_s``."""
        if self._limit_s is None:
            return False
        margin_s = min(MARGIN_S, self._limit_s / 4) + 3 * save_s
        return time.monotonic() - self._began >= self._limit_s - margin_s

    def enter(self, local_rank: int) -> None:
        """The calling process is that rank."""
        self._pids[local_rank] = os.getpid()

    def leave(self, local_rank: int) -> None:
        """That rank has done its part; it may end."""
        self._left[local_rank] = 1

    def start_at(self, step: int) -> None:
        """The run goes on from that step now."""
        self._first[0] = self._steps[0] = step
        self._ready[0] = now_s()

    def tick(self, local_rank: int, step: int) -> None:
        """That rank has moved; so many optimizer steps of the run are done."""
        self._progress[local_rank] += 1
        self._steps[local_rank] = step

    def step_of(self, local_rank: int) -> int:
        """Return how many optimizer steps of the run were done when that rank last moved."""
        return int(self._steps[local_rank])

    @contextmanager
    def working(self, local_rank: int) -> Iterator[None]:
        """Count progress of the rank while it or its children use the CPU, as in a compilation longer than a step."""
        ended = threading.Event()

        def tick() -> None:
            seen = _cpu_s()
            while not ended.wait(WORK_S):
                now = _cpu_s()
                if now - seen > WORK_S / 10:
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
        """Process of each local rank; 0 before it started."""
        return list(self._pids)

    @property
    def has_left(self) -> bool:
        """Whether a rank has done its part."""
        return any(self._left)

    @property
    def progress(self) -> list[int]:
        """How often each local rank has moved."""
        return list(self._progress)

    @property
    def step_range(self) -> StepRange | None:
        """How far the attempt has come; None before the run goes on."""
        return StepRange(self._first[0], self._steps[0], self._ready[0]) if self._ready[0] else None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._stop[0] = number


def _cpu_s() -> float:
    """CPU seconds that this process and its living descendants have used."""
    total, me = 0.0, psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):
            used = process.cpu_times()
            ended = getattr(used, "children_user", 0.0) + getattr(used, "children_system", 0.0)
            total += used.user + used.system + ended
    return total


class StepRange(NamedTuple):
    """How far an attempt came: optimizer steps of the run done when it went on (at a time) and at last."""

    first: int
    last: int
    ready: float
