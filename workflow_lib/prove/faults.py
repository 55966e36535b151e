"""Kill or stop a training at a named point of its code, to test that its resume is exact.

The code names its points by ``sys.audit("everstep", point, ...)``. An audit hook counts them; it is installed in the
launcher, and the ranks inherit it when they are forked.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Target = Literal["self", "launcher", "group"]


@dataclass(frozen=True)
class Fault:
    """Send the signal to the target when a process of this rank reaches the point for the ``count``-th time."""

    point: str
    count: int = 1
    signal: str = "SIGKILL"
    rank: int = 0  # -1: the launcher
    from_step: int = 0  # passes are counted once this many optimizer steps are done
    target: Target = "self"

    def strike(self) -> None:
        """Send the signal; SIGKILL to this process does not return."""
        send(self.target, signal.Signals[self.signal])


def install(faults: Sequence[Fault]) -> None:
    """Install an audit hook with which each fault strikes once, in this process or in a process forked from it."""
    seen = dict.fromkeys(faults, 0)
    step = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal step
        if event != "everstep":
            return
        point, *given = arguments
        if point == "commit":
            step = given[0].progress.cursor.step
        for fault in seen:
            if (fault.point, fault.rank) == (point, current_rank()) and step >= fault.from_step:
                seen[fault] += 1
                if seen[fault] == fault.count:
                    fault.strike()

    sys.addaudithook(watch)


def current_rank() -> int:
    """Return the rank of this process, -1 in a launcher."""
    return int(os.environ.get("RANK", "-1"))


def send(target: Target, number: signal.Signals) -> None:
    """Send the signal to this process, to its launcher (the parent of a rank), or to the whole process group."""
    if target == "group":
        os.killpg(os.getpgid(0), number)
    else:
        os.kill(os.getppid() if target == "launcher" else os.getpid(), number)
