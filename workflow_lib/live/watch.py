"""Shows what a pipeline does: on a terminal and in a notebook a live view and lines, elsewhere lines only."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from workflow_lib.errors import EverstepError
from workflow_lib.live import lines
from workflow_lib.live.jobs import Pipeline
from workflow_lib.live.training import Training
from workflow_lib.results import layout
from workflow_lib.store.events import Follower
from workflow_lib.store.layout import WORK
from workflow_lib.text import count, terminal_width, wrapped

if TYPE_CHECKING:
    from workflow_lib.live.displays import Live

MOST_SHOWN = 2  # trainings in a line about the progress
SILENCE_S, MOST_SILENCE_S = 60.0, 600.0  # after which there is such a line: at first, and later


class Watch:
    """Reads the events of a pipeline and shows them, until the block ends."""

    def __init__(self, events: Follower, log: Path, pipeline: Pipeline | None = None) -> None:
        self.pipeline = pipeline or Pipeline()
        self._events, self._log = events, log
        self._trainings: dict[str, Training] = {}
        self._began = time.monotonic()
        self._said, self._silence_s = self._began, SILENCE_S
        self._live: Live | None = None  # none without a terminal, or while it is left to the shell
        self._is_left_to_shell = False
        self._saving: dict[str, Training] = {}  # trainings that were asked to save, but those whose own job says it

    def __enter__(self) -> Watch:
        self._start_live()
        return self

    def _start_live(self) -> None:
        if sys.stdout.isatty() or "IPython" in sys.modules:
            from workflow_lib.live import displays

            with self._lost_output():
                self._live = displays.open_display()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_live()

    def _stop_live(self) -> None:
        if self._live is not None:
            with self._lost_output():
                self._live.close()
        self._live = None

    @contextmanager
    def _lost_output(self) -> Iterator[None]:
        """Write from now on to nowhere if the terminal or the reader of the pipe is gone: the pipeline goes on.

        A full disk loses a line only.
        """
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):
                self._live = None
                os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())

    def update(self) -> None:
        """Read what is new, and show it."""
        for event in self._events.new():
            self._apply(event)
        self._follow()
        self.has_saved()
        if self._is_left_to_shell and _is_in_foreground():
            self._is_left_to_shell = False
            self._start_live()
        if self._live is not None and _is_in_foreground():
            from workflow_lib.live import screen

            size = self._live.size
            elapsed_s = time.monotonic() - self._began
            shown = screen.view(
                self.pipeline, self._trainings, elapsed_s=elapsed_s, width=size.width, height=size.height
            )
            with self._lost_output():
                self._live.show(shown)
        elif time.monotonic() >= self._said + self._silence_s:
            self._silence_s = min(2 * self._silence_s, MOST_SILENCE_S)
            self._say_progress()

    def _apply(self, event: dict[str, Any]) -> None:
        job = self.pipeline.apply(event)
        if event["kind"] == "message":
            self._say(event["text"])
        elif event["kind"] == "started":
            self._say(self._beginning())
        elif job is not None and self.pipeline.results is not None and self.pipeline.has_started:
            is_brief = self._live is not None and "evaluate" in self.pipeline.counts  # the view has the rest
            line = lines.of_job(job, self.pipeline.results, is_brief=is_brief)
            if line is not None:
                self._say(line)

    def _beginning(self) -> str:
        phases = ", ".join(
            name.removesuffix("s") if n == 1 else f"{n:,} {name}" for name, (_, n) in self.pipeline.phases().items()
        )
        name = self.pipeline.results.name if self.pipeline.results else ""
        total = count(self.pipeline.counts.get("total", 0), "job")
        runs = self.pipeline.runs
        done = len(set(runs) - self.pipeline.needed)
        already = f"; {done:,} of {count(len(runs), 'run')} {'is' if done == 1 else 'are'} finished" if done else ""
        return f"{name}: {total} to run{f': {phases}' if phases else ''}{already}. Snakemake's output: {self._log}"

    def _follow(self) -> None:
        """Read the progress of the trainings that run, and say their warnings."""
        running = {job.name: job for job in self.pipeline.trainings()}
        for name in self._trainings.keys() - running.keys():
            self._say_warnings(name)
            del self._trainings[name]
        for name, job in running.items():
            if name not in self._trainings and self.pipeline.results is not None:
                reference = job.reference(self.pipeline.results)
                with suppress(EverstepError, OSError):  # not frozen yet: it is looked for again
                    self._trainings[name] = Training(str(reference), WORK)
            if name in self._trainings:
                self._say_warnings(name)
                if self._trainings[name].state == "trained":
                    self.pipeline.trained.add((job.rule, job.subject))

    def _say_warnings(self, name: str) -> None:
        for warning in self._trainings[name].update():
            self._say(f"{name}: warning: {warning}")

    def _say_progress(self) -> None:
        """Print one line about the trainings that run."""
        begun = {name: training for name, training in self._trainings.items() if training.is_running()}
        parts = [lines.of_training(name, begun[name]) for name in [*begun][:MOST_SHOWN]]
        more = [f"and {len(begun) - MOST_SHOWN} more"] if len(begun) > MOST_SHOWN else []
        self._say("; ".join([*parts, *more]) or f"{count(self.pipeline.done_jobs, 'job')} finished so far")

    def say_stopping(self) -> None:
        """Say that the trainings save."""
        self.pipeline.is_stopping = True
        if self.pipeline.is_local:
            where, advice = "trainings save", "Another Ctrl-C kills them; then steps since the last checkpoint are lost"
        else:
            where, advice = "jobs on the cluster are cancelled, and save", "Another Ctrl-C does not wait for them"
        self._say(f"stopping: {where}. {advice}")
        own = set() if not self.pipeline.is_local else {job.name for job in self.pipeline.jobs.values()}
        self._saving = {
            name: training
            for name, training in self._trainings.items()
            if name not in own and training.state == "training"
        }

    def has_saved(self) -> bool:
        """Say which trainings have saved since they were asked to; return True if all have."""
        for name in sorted(self._saving):
            if (line := lines.of_end(name, self._saving[name])) is not None:
                self._say(line)
                del self._saving[name]
        return not self._saving

    def say_unsaved(self) -> None:
        """Say which trainings have not saved in time."""
        for name in sorted(self._saving):
            self._say(f"{name}: its job has not ended yet; it may still save, or resumes from its last checkpoint")

    def say_suspended(self) -> None:
        """Say that the pipeline goes on without this process, and leave the terminal to the shell."""
        self._say("suspended: the pipeline goes on, unseen; `fg` shows it again, and Ctrl-C then stops it")
        self._stop_live()

    def resume(self) -> None:
        """Show the pipeline again after a suspension: after `bg`, lines only, until `fg` gives the terminal back."""
        self._is_left_to_shell = True

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        time_of_day = f"{datetime.now():%H:%M:%S} "
        width = terminal_width()
        lines = [time_of_day + text] if width is None else wrapped(text, width, time_of_day, " " * len(time_of_day))
        with self._lost_output():
            if self._live is not None and _is_in_foreground():
                self._live.say("\n".join(lines))
            else:
                print("\n".join(lines), flush=True)

    def print_summary(self) -> None:
        """Print the result of the experiment and what to type next."""
        from workflow_lib import report

        if self.pipeline.results is None:
            return
        if self.pipeline.has_nothing_to_do:
            print(f"nothing to do: {self.pipeline.results.name} is finished ({count(len(self.pipeline.runs), 'run')})")
        if (self.pipeline.results / layout.RUNS_TABLE).exists():
            print(report.summary(self.pipeline.results, terminal_width()))


def _is_in_foreground() -> bool:
    """Return True unless the shell has this process in the background, where a live view would overwrite its prompt."""
    try:
        return os.tcgetpgrp(sys.stdout.fileno()) == os.getpgrp()
    except OSError:  # the terminal is gone, or is not that of this session
        return True
