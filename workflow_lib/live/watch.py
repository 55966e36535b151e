"""Shows what a pipeline does: on a terminal lines above a live view, elsewhere lines only."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
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
from workflow_lib.text import count

if TYPE_CHECKING:
    from rich.live import Live

MOST_SHOWN = 2  # trainings in a line about the progress
SILENCE_S, MOST_SILENCE_S = 60.0, 600.0  # after which there is such a line: at first, and later


class Watch:
    """Reads the events of a pipeline and shows them, until the block ends."""

    def __init__(self, events: Follower, log: Path) -> None:
        self.pipeline = Pipeline()
        self._events, self._log = events, log
        self._trainings: dict[str, Training] = {}
        self._began = time.monotonic()
        self._said, self._silence_s = self._began, SILENCE_S
        self._live: Live | None = None

    def __enter__(self) -> Watch:
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console()
            if not console.is_dumb_terminal:
                self._live = Live(console=console, auto_refresh=False, transient=True)
                self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self) -> None:
        """Read what is new, and show it."""
        for event in self._events.new():
            self._apply(event)
        self._follow()
        if self._live is not None:
            from workflow_lib.live import screen

            size = self._live.console.size
            elapsed_s = time.monotonic() - self._began
            shown = screen.view(
                self.pipeline, self._trainings, elapsed_s=elapsed_s, width=size.width, height=size.height
            )
            self._live.update(shown, refresh=True)
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
            line = lines.of_job(job, self.pipeline.results)
            if line is not None:
                self._say(line)

    def _beginning(self) -> str:
        phases = ", ".join(
            name.removesuffix("s") if n == 1 else f"{n:,} {name}" for name, (_, n) in self.pipeline.phases().items()
        )
        name = self.pipeline.results.name if self.pipeline.results else ""
        total = count(self.pipeline.counts.get("total", 0), "job")
        return f"{name}: {total} to run: {phases}. Snakemake's output: {self._log}"

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

    def _say_warnings(self, name: str) -> None:
        for warning in self._trainings[name].update():
            self._say(f"{name}: warning: {warning}")

    def _say_progress(self) -> None:
        """Print one line about the trainings that run."""
        begun = {name: training for name, training in self._trainings.items() if training.is_running()}
        parts = [lines.of_training(name, begun[name]) for name in [*begun][:MOST_SHOWN]]
        more = [f"and {len(begun) - MOST_SHOWN} more"] if len(begun) > MOST_SHOWN else []
        self._say("; ".join([*parts, *more]) or f"{self.pipeline.done_jobs} jobs are finished")

    def say_stopping(self) -> None:
        """Say that the trainings save."""
        self.pipeline.is_stopping = True
        where = "trainings save" if self.pipeline.is_local else "jobs on the cluster are cancelled, and save"
        self._say(f"stopping: {where}. Another Ctrl-C kills them; then steps since the last checkpoint are lost")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        line = f"{datetime.now():%H:%M:%S} {text}"
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)

    def print_summary(self) -> None:
        """Print the result of the experiment and what to type next."""
        from workflow_lib import report

        if self.pipeline.results is None:
            return
        if self.pipeline.has_nothing_to_do:
            print(f"nothing to do: {self.pipeline.results.name} is finished ({count(len(self.pipeline.runs), 'run')})")
        if (self.pipeline.results / layout.RUNS_TABLE).exists():
            print(report.summary(self.pipeline.results))
