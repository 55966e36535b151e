"""The watchdog names the rank that makes no progress."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

from tests.support.warm import until
from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.launch.watchdog import Watchdog


def test_a_rank_of_a_later_node_is_named_by_its_number_in_the_job(tmp_path: Path) -> None:
    shared_state = SharedState(2)
    with ExitStack() as stack:
        ranks = [stack.enter_context(subprocess.Popen(["sleep", "1000"])) for _ in range(2)]
        for rank in ranks:
            stack.callback(rank.kill)
        shared_state._pids[:] = [rank.pid for rank in ranks]
        os.kill(ranks[1].pid, signal.SIGSTOP)
        watchdog = Watchdog(shared_state, tmp_path, "attempt", node=1, hang_s=0.1)
        stack.callback(watchdog.close)
        until(lambda: watchdog.verdict, "the verdict of the watchdog")
        assert str(watchdog.verdict).startswith(f"rank 3 (pid {ranks[1].pid}) was stopped from outside")
        assert [rank.wait() for rank in ranks] == [-signal.SIGKILL] * 2, "the watchdog ended both"
