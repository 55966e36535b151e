"""A thread of the launcher that kills ranks without progress, and writes the heartbeat of the attempt.

It reads the integers that launcher and ranks share (``SharedState``) and the process table. Each limit is counted from
the watchdog's own observations, so it starts again if this process was suspended meanwhile.
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

CHECK_S = 0.5
LOST_S = 5.0  # wait after the end of the last rank; then torch's engine has not noticed that all ranks are gone
START_S = 5.0  # time to reach the first step after a request to stop; then the ranks are killed: nothing to save
STOPPED_S = 30.0  # time that a rank may be stopped by SIGSTOP before all ranks are killed


class Watchdog:
    """Kills all ranks if a rank is stopped from outside or hangs; ``verdict`` then names that rank."""

    def __init__(self, shared_state: SharedState, workspace: Path, attempt: str, *, node: int, hang_s: float) -> None:
        self.verdict: str | None = None
        self.is_stopped = False  # True if the run was asked to stop before it had anything to save
        self._shared_state = shared_state
        self._workspace = workspace
        self._attempt = attempt
        self._first_rank = node * len(shared_state.pids)
        self._are_recorded = node > 0  # the launcher of the first node writes the record
        self._hang_s = hang_s
        self._touched_at = time.monotonic()
        self._progress = shared_state.progress
        self._restart(time.monotonic())
        self._heartbeat = ws.Heartbeat(workspace, attempt) if node == 0 else None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def touch(self) -> None:
        """Restart the hang timeout: this launcher is waiting for those of other nodes."""
        self._touched_at = time.monotonic()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()
        if self._heartbeat is not None:
            self._heartbeat.close()

    def _restart(self, now: float) -> None:
        self._stopped_since: dict[int, float] = {}
        self._lost_since: float | None = None
        self._asked_since: float | None = None
        self._moved_at = now

    def _run(self) -> None:
        checked_at = time.monotonic()
        while not self._ended.wait(CHECK_S):
            now = time.monotonic()
            if now - checked_at > 10 * CHECK_S:  # this process itself was stopped, or the host slept
                self._restart(now)
            checked_at = now
            if self._heartbeat is not None:
                self._heartbeat.write(self._shared_state.step_range)
            if not self._are_recorded and all(self._shared_state.pids):
                self._are_recorded = self._record_ranks()
            if self._are_lost(now):
                self._end_all("the ranks ended without a result and without an error, as by os._exit(0)")
                os.kill(os.getpid(), signal.SIGQUIT)  # torch's engine still waits for their results
                return
            if self._has_stopped_early(now):
                self.is_stopped = True
                self._end_all("asked to stop before the first step")
                return
            if (reason := self._why_hung(now)) is not None:
                self._end_all(reason)
                return

    def _are_lost(self, now: float) -> bool:
        """Return True if all ranks have been gone for ``LOST_S`` and none of them has finished."""
        pids = self._shared_state.pids
        if self._shared_state.has_left or not all(pid and _is_gone(pid) for pid in pids):
            self._lost_since = None
            return False
        self._lost_since = self._lost_since or now
        return now - self._lost_since > LOST_S

    def _has_stopped_early(self, now: float) -> bool:
        """Return True if the ranks were asked to stop and have not made a step for ``START_S``."""
        shared_state = self._shared_state
        # if a rank is gone, torch's engine ends the others: it sends them SIGTERM, which is no request of the user
        is_asked = shared_state.stop_signal and not any(pid and _is_gone(pid) for pid in shared_state.pids)
        if not is_asked or shared_state.step_range is not None or not any(shared_state.pids):
            return False
        self._asked_since = self._asked_since or now
        return now - self._asked_since > START_S

    def _why_hung(self, now: float) -> str | None:
        """Return the reason if a rank is stopped for too long, or if no rank makes progress for the hang timeout."""
        progress = self._shared_state.progress
        if progress != self._progress:
            self._progress, self._moved_at = progress, now
        for rank, pid in enumerate(self._shared_state.pids):
            if pid and _is_stopped(pid):
                self._stopped_since.setdefault(rank, now)
            else:
                self._stopped_since.pop(rank, None)
        is_hung = now - max(self._moved_at, self._touched_at) > self._hang_s
        for rank, since in self._stopped_since.items():
            if is_hung or now - since > STOPPED_S:  # if all hang, the stopped rank is the cause: the others wait for it
                return f"{self._name(rank)} was stopped from outside (SIGSTOP)"
        if not is_hung:
            return None
        slowest = min(range(len(progress)), key=progress.__getitem__)
        behind = f"; {self._name(slowest)} is behind" if len(set(progress)) > 1 else ""
        return f"no rank has made a step for {self._hang_s:.0f} s (runtime.hang_timeout_s){behind}"

    def _record_ranks(self) -> bool:
        """Record the processes of the ranks, so that a later attempt can end them; return False if it failed."""
        try:
            found = [ws.RankProcess.of(rank, pid) for rank, pid in enumerate(self._shared_state.pids)]
            ws.record_ranks(self._workspace, self._attempt, found)
        except (psutil.NoSuchProcess, OSError):
            return False
        return True

    def _name(self, local_rank: int) -> str:
        return f"rank {self._first_rank + local_rank} (pid {self._shared_state.pids[local_rank]})"

    def _end_all(self, reason: str) -> None:
        # the verdict comes first: the launcher reads it as soon as a rank is gone
        self.verdict = (
            f"{reason}; the ranks were ended. Run the same command again to continue from the last checkpoint"
        )
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
