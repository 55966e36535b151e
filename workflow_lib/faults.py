"""Faults on purpose: a process that kills itself at a named point, to see whether the run survives it.

    python -m workflow_lib.faults '{"point": "optimizer", "count": 7, "signal": "SIGKILL"}' train --run ...

runs a verb with an audit hook that watches the points which the code names by ``sys.audit("everstep", point)``. It is
installed in the launcher and inherited by the ranks. Nothing else in the package imports this module.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Target = Literal["self", "launcher", "group"]


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
        number = signal.Signals[self.signal]
        if self.target == "group":
            os.killpg(os.getpgid(0), number)
        else:
            os.kill(os.getppid() if self.target == "launcher" else os.getpid(), number)


def install(faults: Sequence[Fault]) -> None:
    """Each fault strikes once, in this process or in one forked from it."""
    seen: dict[Fault, int] = dict.fromkeys(faults, 0)
    step = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal step
        if event != "everstep":
            return
        if arguments[0] == "commit":
            step = arguments[1].state.cursor.step
        for fault in seen:
            if (
                arguments[0] == fault.point
                and step >= fault.from_step
                and os.environ.get("RANK", "-1") == str(fault.rank)
            ):
                seen[fault] += 1
                if seen[fault] == fault.count:
                    fault.strike()

    sys.addaudithook(watch)


def main() -> None:
    """Runs a verb with the faults of the first argument, a JSON object or a list of them."""
    given = json.loads(sys.argv[1])
    install([Fault(**one) for one in (given if isinstance(given, list) else [given])])
    del sys.argv[1]
    runpy.run_module("workflow_lib", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
