"""A process with all imports done, which forks attempts: each is a real launcher with real ranks and starts at once.

It imports everything that training needs and computes nothing, so that it can be forked. Tests talk to it in lines of
JSON. Its children end with it, and it ends when its input ends.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support import faults
from tests.support.crash import RAISED, wait
from tests.support.repository import ROOT
from workflow_lib.store.orphans import exit_with_parent

TIMED_OUT = 124
WAIT_S = 300.0  # for what takes a second on an idle machine


@dataclass(frozen=True)
class Order:
    """A command that is run in a forked process."""

    arguments: list[str]
    folder: str
    log: str
    faults: list[dict[str, Any]] = field(default_factory=list)
    plant: str | None = None  # module:function that is called first
    environment: dict[str, str] = field(default_factory=dict)


class Warm:
    """The warm process, as a context manager of the test."""

    def __enter__(self) -> Warm:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask(None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def load(self, *modules: str) -> None:
        """Import modules that attempts need, so that no attempt imports them itself."""
        self._ask({"load": modules})

    def start(self, order: Order) -> int:
        """Start the command; return the number of its process, which is also its group."""
        return int(self._ask({"start": asdict(order)}))

    def wait(self, pid: int, timeout_s: float = WAIT_S) -> int:
        """Return its exit code, a signal as a negative number. After the timeout, kill its group; return TIMED_OUT."""
        return int(self._ask({"wait": pid, "timeout_s": timeout_s}))

    def run(self, order: Order) -> int:
        """Run the command and return its exit code."""
        return self.wait(self.start(order))

    def _ask(self, question: Any) -> Any:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the warm process has no pipes")
        if question is not None:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the warm process ended with {self._process.wait()}")
        return json.loads(answer)


def states(group: int) -> dict[int, str]:
    """Return the live processes of the group with their states, as in proc(5)."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found[int(entry.name)] = fields[0]
    return found


def members(group: int) -> list[int]:
    """Return the live processes of the group."""
    return sorted(states(group))


def until(is_true: Callable[[], Any], what: str) -> Any:
    """Wait until the condition is true, and return its value. Raise TimeoutError after WAIT_S."""
    deadline = time.monotonic() + WAIT_S
    while not (found := is_true()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {WAIT_S:.0f} s for {what}")
        time.sleep(0.005)
    return found


def _serve() -> None:
    import torch._dynamo
    import torch.distributed.launcher.api  # noqa: F401

    import workflow_lib.training.trainer  # noqa: F401
    from workflow_lib.launch import commands  # noqa: F401

    _answer("ready")
    for line in sys.stdin:
        question = json.loads(line)
        if "load" in question:
            _answer([importlib.import_module(name).__name__ for name in question["load"]])
        elif "start" in question:
            _answer(_start(Order(**question["start"])))
        else:
            _answer(_wait(question["wait"], question["timeout_s"]))


def _answer(value: Any) -> None:
    print(json.dumps(value), flush=True)


def _start(order: Order) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.setpgid(pid, pid)
        return pid
    code = RAISED  # no command returns it: an exception that escapes cannot pass for a reported failure
    try:
        os.setpgid(0, 0)
        exit_with_parent(parent)
        code = _obey(order)
    except BaseException:  # also sys.exit: the child must not go on to serve
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _obey(order: Order) -> int:
    from workflow_lib.cli import main

    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.chdir(order.folder)
    os.environ.update(order.environment)
    if order.plant:
        module, _, name = order.plant.partition(":")
        getattr(importlib.import_module(module), name)()
    if order.faults:
        faults.install([faults.from_json(one) for one in order.faults])
    return main(order.arguments)


def _wait(pid: int, timeout_s: float) -> int:
    try:
        return wait(pid, timeout_s)
    except TimeoutError:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        return TIMED_OUT


if __name__ == "__main__":
    _serve()
