"""Processes that are forked from this one, at most a number at once; a request to stop is passed on to all of them.

A fork ends when this process ends. This process must have no other thread when it forks, since locks that another
thread holds would stay locked in the fork for ever; and it must not have started CUDA. If a module of the user has
started a thread, nothing more is forked, and what is left is done by other jobs.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from workflow_lib.distributed.shared_state import STOP_SIGNALS
from workflow_lib.errors import EverstepError, with_advice
from workflow_lib.files import names_in
from workflow_lib.runtime import forking
from workflow_lib.store.orphans import exit_with_parent

logger = logging.getLogger(__name__)
HANDLED = (*STOP_SIGNALS, signal.SIGALRM)
POLL_S = 0.1  # until a task that may not start yet is asked about again


class _Interrupted(BaseException):
    """Ends the work of this process; not an Exception, which imported code may catch."""


@dataclass(frozen=True)
class Task:
    """A function that a fork calls; its output is appended to the log. ``name`` is for messages.

    prepare   called here before the fork
    is_last   True if it is started after all tasks that are known by then
    kind      of its need of a GPU's memory; empty if it needs none
    is_alone  True if no other task may use the GPU meanwhile
    """

    name: str
    call: Callable[[], None]
    log: Path
    ended: Callable[[int], Iterable[Task]] = lambda code: ()  # called here with its exit code; returns further tasks
    prepare: Callable[[], object] = lambda: None
    is_last: bool = False
    kind: str = ""
    is_alone: bool = False


class Forks:
    """Runs tasks in forks until all have ended, or until this process is asked to stop by a signal or its deadline."""

    def __init__(self, at_once: int, limit_s: float | None = None) -> None:
        self._at_once = at_once
        self._running: dict[int, Task] = {}
        self._has_told = False  # that this process cannot fork
        self.stop_signal = 0  # SIGALRM is the deadline
        self._is_working = False
        self.allows: Callable[[Task, Collection[Task]], bool] = lambda task, running: True  # to start beside the others
        for number in HANDLED:
            signal.signal(number, self._stop)
        if limit_s is not None:
            signal.setitimer(signal.ITIMER_REAL, max(limit_s, 0.001))

    def run(self, tasks: Iterable[Task], meanwhile: Callable[[], bool] = lambda: False) -> None:
        """Run the tasks, and those that they are followed by, which are started first unless they are the last.

        While tasks run, ``meanwhile`` is called here, one piece of work at a time, until it returns False. A request to
        stop ends it: an import can take seconds, and the tasks have saved by then.
        """
        waiting = deque(tasks)
        while self._running or (waiting and not self.stop_signal):
            while waiting and self._has_room(waiting[0]) and not self.stop_signal:
                self._start(waiting.popleft())
            if self._running:
                has_worked = self._work(meanwhile)
                is_refused = waiting and len(self._running) < self._at_once and not self.stop_signal
                # repeated by Python after a signal; its handler runs before
                pid, status = os.waitpid(-1, os.WNOHANG if is_refused or has_worked else 0)
                if pid == 0 and not has_worked:
                    time.sleep(POLL_S)
                task = self._running.pop(pid, None)
                if task is not None:
                    for following in task.ended(os.waitstatus_to_exitcode(status)):
                        (waiting.append if following.is_last else waiting.appendleft)(following)

    def _work(self, work: Callable[[], object]) -> bool:
        """Do the work, unless this process has been asked to stop, or until it is; return True if it did something."""
        if self.stop_signal:
            return False
        try:
            self._is_working = True
            has_worked = bool(work())
            self._is_working = False
        except _Interrupted:
            return False
        return has_worked

    def _has_room(self, task: Task) -> bool:
        running = self._running.values()
        return not running or (len(running) < self._at_once and self.allows(task, running))

    def _start(self, task: Task) -> None:
        self._work(task.prepare)
        if self.stop_signal:
            return
        forking.check_cuda_not_started()
        if len(names_in("/proc/self/task")) > 1:
            self._tell_of_threads()
            return
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        # a signal between the fork and the record of the fork would not reach it
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            pid = os.fork()
            if pid == 0:
                _obey(task, parent)
            self._running[pid] = task
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def _tell_of_threads(self) -> None:
        """Warn once that this process cannot fork, since it has other threads."""
        if not self._has_told:
            names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
            logger.warning(
                "a module that this job imported has started a thread%s, so it cannot fork: what is left of the pack is"
                " done by its own jobs. Start threads in functions, not at the top of a module, or set runtime.pack: 1",
                f" ({', '.join(names)})" if names else "",
            )
        self._has_told = True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_signal = self.stop_signal or number
        for pid in self._running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if self._is_working:
            self._is_working = False
            raise _Interrupted


def _obey(task: Task, parent: int) -> None:
    """Do the task, in the fork, and end it."""
    code = 1
    try:
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        exit_with_parent(parent)
        _redirect(task.log)
        task.call()
        code = 0
    except EverstepError as error:
        logger.error("%s: %s", task.name, with_advice(error))
        code = error.exit_code
    except OSError as error:
        logger.error("%s: %s", task.name, with_advice(error))
    except BaseException:  # also SystemExit of a plugin: the fork must not go on as its parent
        traceback.print_exc()
    finally:
        with suppress(OSError):  # a full disk must not change the exit code
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _redirect(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
