"""Work in a process that is forked from the test, under faults that really kill it."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.support import faults
from workflow_lib.distributed.ranks import Peers

SURVIVED, RAISED = 0, 90


def run_forked(work: Callable[[], object], given: Sequence[faults.Fault | faults.FileFault] = ()) -> int:
    """Do the work in a forked process; return 0, the signal that ended it as a negative number, or RAISED."""
    return wait(fork(work, given))


def fork(work: Callable[[], object], given: Sequence[faults.Fault | faults.FileFault] = ()) -> int:
    """Start a process that does the work under the faults, and return its number."""
    pid = os.fork()
    if pid:
        return pid
    code = RAISED
    try:
        if given:
            faults.install(given)
        work()
        code = SURVIVED
    except BaseException:  # also a failed assertion: the process must not run on in the test's frames
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


def wait(pid: int, timeout_s: float = 300.0) -> int:
    """Return the exit code, a signal as a negative number. Kill it after the timeout: TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"process {pid} did not end in {timeout_s:.0f} s")
        time.sleep(0.001)


def operations(work: Callable[[], object], under: str) -> list[str]:
    """Return the file operations below the folder that the work does in a forked process, in order."""
    reader, writer = os.pipe()

    def watched() -> None:
        def tell(operation: str, path: str) -> None:
            if path.startswith(under):
                os.write(writer, f"{operation}\t{path[len(under) :]}\n".encode())

        faults.install([], tell)
        work()

    pid = fork(watched)
    os.close(writer)
    with open(reader, encoding="utf-8") as lines:
        found = lines.read().splitlines()
    if (code := wait(pid)) != SURVIVED:
        raise RuntimeError(f"the work ended with {code}")
    return found


def fork_ranks(
    count: int, work: Callable[[Peers], object], meeting: Path, given: Sequence[faults.Fault | faults.FileFault] = ()
) -> list[int]:
    """Do the work in this number of processes, joined by gloo through the file; return the exit code of each."""
    meeting.unlink(missing_ok=True)

    def join(rank: int) -> None:
        import torch.distributed as dist

        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), GLOO_SOCKET_IFNAME="lo")
        dist.init_process_group("gloo", store=dist.FileStore(str(meeting), count), rank=rank, world_size=count)
        if given:
            faults.install(given)
        work(Peers(rank, count, dist.new_group(backend="gloo")))
        dist.barrier()
        dist.destroy_process_group()

    return [wait(pid) for pid in [fork(partial(join, rank)) for rank in range(count)]]
