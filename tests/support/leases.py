"""Processes that take and hold leases."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.crash import fork
from workflow_lib.store.lease import Lease, current


@pytest.fixture
def forked() -> Iterator[Callable[..., int]]:
    """Starts processes; none of them outlives the test."""
    pids = []

    def start(work: Callable[[], object]) -> int:
        pids.append(fork(work))
        return pids[-1]

    yield start
    for pid in pids:
        with contextlib.suppress(ChildProcessError):  # the test has waited for it
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def take(workspace: Path, attempt: str = "a", timeout_s: float = 30.0, wait_s: float = 0.0, **more: Any) -> Lease:
    return Lease.acquire(workspace, attempt, timeout_s=timeout_s, wait_s=wait_s, **more)


def hold(workspace: Path, ready: Path, timeout_s: float = 30.0) -> Callable[[], None]:
    """Work of a process that takes the lease, says so by a file, and never lets go of it by itself."""

    def work() -> None:
        take(workspace, "holder", timeout_s)
        ready.touch()
        signal.pause()

    return work


def until(is_true: Callable[[], object], timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)


def pretend(workspace: Path, **changes: Any) -> None:
    """The newest lease file says something else of its holder."""
    number, holder = current(workspace / "leases")
    assert holder is not None
    path = workspace / "leases" / f"{number:06d}.json"
    path.write_text(json.dumps({**holder.__dict__, **changes}))


def poll(pid: int) -> int | None:
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if found else None


def until_given_up(seconds: float) -> Callable[[], bool]:
    """Says that a contender must stop once it has waited for so long."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end
