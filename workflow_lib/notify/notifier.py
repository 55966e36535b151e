"""Tells what happens to a pipeline. Its methods raise nothing: a message that cannot be sent fails no training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import files
from workflow_lib.errors import EverstepError, UserError
from workflow_lib.notify import message
from workflow_lib.notify.channels import channels
from workflow_lib.notify.message import Failure, Message
from workflow_lib.notify.outbox import Outbox
from workflow_lib.notify.stalls import Stalls
from workflow_lib.plan import frozen
from workflow_lib.results import layout
from workflow_lib.store.attempts import utc_now

if TYPE_CHECKING:
    from workflow_lib.config.notify import Notify

LOOKS_PER_LIMIT = 10  # at the trainings, in the time after which one has stalled
LONGEST_LOOK_S = 60.0


def check_environment(settings: Notify, environment: Mapping[str, str]) -> None:
    """Raise UserError if a variable that the settings name is not set."""
    named = settings.variables().items()
    missing = [f"{variable} ({name})" for name, variable in named if not environment.get(variable)]
    if missing:
        raise UserError(
            f"these environment variables are not set here: {', '.join(missing)}. Nothing was started. Set them in the "
            f"shell that runs the pipeline, or remove the settings"
        )


class Notifier:
    """Tells the end, the failures and the stalls of the pipeline of one experiment."""

    def __init__(
        self,
        settings: Notify,
        results: Path,
        work: Path,
        *,
        environment: Mapping[str, str],
        say: Callable[[str], object],
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings, self._results, self._work, self._say = settings, results, work, say
        self._outbox = Outbox(results, channels(settings, environment), settings.tries, settings.timeout_s, pause)
        self._is_over = threading.Event()

    def resume(self, runs: Callable[[], Sequence[str] | None]) -> None:
        """Send what an earlier process could not; `runs` returns those of a finished experiment, else None.

        Also tells the end of an experiment whose process was killed after its last job.
        """
        with self._never_failing():
            self._report(self._outbox.resume())
            if layout.open_file(self._results).exists() and (finished := runs()) is not None:
                self.end(finished)

    def begin(self, running: Callable[[], Iterable[str]]) -> None:
        """Mark that the pipeline has begun, and look for stalls until its end.

        `running` returns references to the runs that have a job now, as `plan.load_run` takes them.
        """
        with self._never_failing():
            files.write_json(layout.open_file(self._results), {"began": utc_now()})
        if "stall" in self._settings.events:
            threading.Thread(target=self._look, args=(running,), name="stalls", daemon=True).start()

    def end(self, runs: Sequence[str]) -> None:
        """Tell that these runs, all of the experiment, have their results."""
        self._is_over.set()
        with self._never_failing():
            self._tell(message.ended(self._results, runs, self._lines()))
            layout.open_file(self._results).unlink(missing_ok=True)

    def fail(self, failures: Sequence[Failure], settings: str, resume: str) -> None:
        """Tell that jobs have failed; none have if the user stopped the pipeline, which is not told."""
        self._is_over.set()
        if failures:
            with self._never_failing():
                self._tell(message.failed(self._results, failures, settings, resume))
                layout.open_file(self._results).unlink(missing_ok=True)

    def _lines(self) -> Mapping[str, object]:
        from workflow_lib import report

        try:
            return report.result(self._results)[1] | {"report": self._results / layout.REPORT}
        except UserError as error:  # all runs diverged
            return {"result": error}

    def _look(self, running: Callable[[], Iterable[str]]) -> None:
        limit_s = 60 * self._settings.stall_minutes
        stalls = Stalls(limit_s, self._work)
        while not self._is_over.wait(min(limit_s / LOOKS_PER_LIMIT, LONGEST_LOOK_S)):
            with self._never_failing():
                if found := stalls.find(self._digests(running()), time.monotonic()):
                    self._tell(message.stalled(self._results, found))

    def _digests(self, references: Iterable[str]) -> Iterator[str]:
        for reference in references:
            with suppress(EverstepError):  # it is not frozen yet
                yield frozen.run_path(reference, self._work).parent.name

    def _tell(self, told: Message) -> None:
        if told.event in self._settings.events:
            self._report(self._outbox.tell(told))

    def _report(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._say(f"notify: {line}")

    @contextmanager
    def _never_failing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            known = str(error) if isinstance(error, EverstepError | OSError) else type(error).__name__
            self._say(f"notify: no message was sent: {known}. No training is affected")
