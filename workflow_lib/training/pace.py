"""The time that a training will still take, from the steps that it has done; steady while the load varies."""

from __future__ import annotations

import math

LEAST_WINDOW_S, MOST_WINDOW_S = 60.0, 3600.0
LONGEST = 0.25  # of the window: what the time between two calls counts at most


class Pace:
    """Steps per second over a window that forgets slowly: half the time since the beginning, within bounds.

    Validations and saves count like steps, since more of them will follow. Of a long interruption, such as that of
    Ctrl-Z, only a part counts, so that the estimate recovers soon.
    """

    def __init__(self, step: int, now: float) -> None:
        self._began = now
        self._last = (step, now)
        self._steps = self._seconds = 0.0

    def add(self, step: int, now: float) -> None:
        """Take into account that ``step`` steps are done at the time ``now``, in seconds."""
        last_step, last = self._last
        if step <= last_step or now <= last:
            return  # the time counts with the next steps
        window_s = min(max((now - self._began) / 2, LEAST_WINDOW_S), MOST_WINDOW_S)
        seconds = min(now - last, LONGEST * window_s)
        kept = math.exp(-seconds / window_s)
        self._steps = kept * self._steps + step - last_step
        self._seconds = kept * self._seconds + seconds
        self._last = (step, now)

    def left_s(self, steps: int, now: float) -> float | None:
        """Return the seconds for all steps up to ``steps``; None before the first one."""
        if not self._steps:
            return None
        last_step, last = self._last
        return max(0.0, (steps - last_step) * self._seconds / self._steps - (now - last))
