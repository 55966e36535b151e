"""A thread of the launcher sees that the ranks move; it keeps the attempt's heartbeat and record meanwhile.

It looks at the integers that launcher and ranks share (``SharedState``) and at the process table, and trusts no clock
across a sleep of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import psutil

from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.store import attempts as ws

WATCH_S = 0.5
ALONE_S = 5.0  # ranks that are all gone, and whose end the launcher does not notice, are given up after this
START_S = 5.0  # ranks that are asked to stop before their first step, and do not come to it, are ended after this
STOPPED_S = 30.0  # a rank that something else has stopped (SIGSTOP) is given up after this


class Watchdog:
    """Sees that the ranks move: one that is stopped from outside, or hangs, is ended with all others, and named."""

    def __init__(self, shared_state: SharedState, workspace: Path, attempt: str, *, node: int, hang_s: float) -> None:
        self.verdict: str | None = None
        self.is_stopped = False  # the verdict is that the run was asked to stop, and had nothing to save
        self._shared_state = shared_state
        self._workspace = workspace
        self._attempt = attempt
        self._first = node * len(shared_state.pids)  # rank of this node
        self._are_recorded = node > 0  # the first node's launcher keeps the record
        self._hang_s = hang_s
        self._touched = time.monotonic()
        self._heartbeat = ws.Heartbeat(workspace, attempt) if node == 0 else None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def touch(self) -> None:
        """Restart the clock of ``hang_s``: the launcher is alive, and waits for those of other nodes."""
        self._touched = time.monotonic()

    def close(self) -> None:
        """Nobody is watched any more."""
        self._ended.set()
        self._thread.join()
        if self._heartbeat is not None:
            self._heartbeat.close()

    def _run(self) -> None:
        shared_state, hang_s = self._shared_state, self._hang_s
        stopped_since: dict[int, float] = {}
        alone_since: float | None = None
        asked_since: float | None = None
        seen, moved_at, looked_at = shared_state.progress, time.monotonic(), time.monotonic()
        while not self._ended.wait(WATCH_S):
            now = time.monotonic()
            if now - looked_at > 10 * WATCH_S:  # this process itself was stopped, or the host slept
                stopped_since, alone_since, asked_since, moved_at = {}, None, None, now
            looked_at = now
            if self._heartbeat is not None:
                self._heartbeat.write(shared_state.step_range)
            if not self._are_recorded and all(shared_state.pids):
                self._are_recorded = self._record_ranks()
            if shared_state.progress != seen:
                seen, moved_at = shared_state.progress, now
            for rank, pid in enumerate(shared_state.pids):
                if pid and _is_stopped(pid):
                    stopped_since.setdefault(rank, now)
                else:
                    stopped_since.pop(rank, None)
            is_alone = all(pid and _is_gone(pid) for pid in shared_state.pids) and not shared_state.has_left
            alone_since = (alone_since or now) if is_alone else None
            if alone_since is not None and now - alone_since > ALONE_S:
                self._end_all("the ranks ended without a word and without an error, as by os._exit(0)")
                os.kill(os.getpid(), signal.SIGQUIT)  # the launcher waits for what they return
                return
            # a rank that is gone has failed, and torch's engine ends the others, with SIGTERM first
            is_asked = shared_state.stop_signal and not any(pid and _is_gone(pid) for pid in shared_state.pids)
            if is_asked and shared_state.step_range is None and any(shared_state.pids):
                asked_since = asked_since or now
                if now - asked_since > START_S:
                    self.is_stopped = True
                    self._end_all("asked to stop before the first step")
                    return
            is_hung = now - max(moved_at, self._touched) > hang_s
            for rank, since in stopped_since.items():
                if is_hung or now - since > STOPPED_S:
                    self._end_all(f"{self._name(rank)} was stopped from outside (SIGSTOP)")
                    return
            if is_hung:
                slowest = min(range(len(seen)), key=seen.__getitem__)
                behind = f"; {self._name(slowest)} is behind" if len(set(seen)) > 1 else ""
                self._end_all(f"no rank has made a step for {hang_s:.0f} s (runtime.hang_timeout_s){behind}")
                return

    def _record_ranks(self) -> bool:
        """Whether the attempt's record names the processes, so that a later attempt can end them."""
        try:
            found = [ws.RankProcess.of(rank, pid) for rank, pid in enumerate(self._shared_state.pids)]
            ws.record_ranks(self._workspace, self._attempt, found)
        except (psutil.NoSuchProcess, OSError):
            return False
        return True

    def _name(self, local_rank: int) -> str:
        return f"rank {self._first + local_rank} (pid {self._shared_state.pids[local_rank]})"

    def _end_all(self, verdict: str) -> None:
        self.verdict = f"{verdict}; the ranks were ended. Run the same command again to go on from the last checkpoint"
        for pid in self._shared_state.pids:
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _is_stopped(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False
