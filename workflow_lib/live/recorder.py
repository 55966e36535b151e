"""Records what Snakemake does in a file, one JSON line an event, for the `everstep run` that started it.

A job that was rejected for a mistake of the user is not retried, also without `everstep run`: it would fail again.

plan       an experiment is read: its frozen file, results folder and runs, and if the jobs run on this machine
jobs       number of jobs by rule
started    the jobs begin, this is no dry run: the runs that need one, the runs of each pack, and
           the folder in which packs prepare results
job        a job starts, or starts again: id, rule, wildcards
finished   the job with this id is finished
failed     the job with this id did not finish: its exit code, if that is known, and the last line of its log
message    a line of Everstep for the user
error      the reason why the pipeline ends without success
nothing    there is nothing to do
told       people have been told about failed jobs, by `notify`
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from workflow_lib import snakefile
from workflow_lib.errors import UserError
from workflow_lib.store.events import EventLog

PATH, COMMAND = "EVERSTEP_EVENTS", "EVERSTEP_COMMAND"  # environment variables
OWN_COMMAND = "python -m workflow_lib "
FAILED_COMMAND = "CalledProcessError in "
EXIT = re.compile(r"returned non-zero exit status (\d+)\.$|died with <Signals\.\w+: (\d+)>\.$", re.MULTILINE)
# Messages that say only that some job failed; Everstep's own one names the job and its reason.
NO_REASONS = (
    FAILED_COMMAND,
    "Exiting because a job execution failed",
    "At least one job did not complete successfully",
)


def record(kind: str, **fields: Any) -> None:
    """Append an event to the file that `everstep run` reads; do nothing if Snakemake was started otherwise."""
    if path := os.environ.get(PATH):
        EventLog(Path(path)).append(kind, **fields)


class Recorder(logging.Handler):
    """Records the events of Snakemake's logger.

    `rejected` are the ids of the jobs whose command, one of Everstep, ended with the code of a mistake of the user.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rejected: set[int] = set()
        self._last = threading.local()  # Snakemake tells the exit code of a job just before its end, in the same thread

    def emit(self, entry: logging.LogRecord) -> None:
        from snakemake.common import NOTHING_TO_BE_DONE_MSG

        values = vars(entry)
        match values.get("event"):
            case "run_info":
                record("jobs", counts=values["stats"])
            case "job_info":
                named = {name: str(value) for name, value in values["wildcards"].items()}
                record("job", id=values["jobid"], rule=values["rule_name"], wildcards=named)
            case "job_finished":
                record("finished", id=values["job_id"])
            case "job_error":
                # read now, since a retry empties the log
                logs = [*map(Path, values["log"])]
                code = vars(self._last).pop("code", None)
                code = code_in(logs[1:]) if code is None else code  # with a cluster, only the log of its job tells it
                reason = snakefile.last_line(logs[0] if logs else None)
                if code == UserError.exit_code and OWN_COMMAND in (values.get("shellcmd") or ""):
                    self.rejected.add(values["jobid"])
                record("failed", id=values["jobid"], code=code, reason=reason)
            case "error" | None if entry.levelno >= logging.ERROR:
                self._add_error(entry.getMessage())
            case None if entry.getMessage() == NOTHING_TO_BE_DONE_MSG:
                record("nothing")

    def _add_error(self, text: str) -> None:
        if FAILED_COMMAND in text and (code := exit_code(text)) is not None:
            self._last.code = code
        if not any(words in text for words in NO_REASONS):
            record("error", text=text.removeprefix("WorkflowError:\n"))


def exit_code(text: str) -> int | None:
    """Return the first exit code that Snakemake tells in the text, negative for a signal; None without one."""
    ended = EXIT.search(text)
    return None if ended is None else int(ended[1]) if ended[1] else -int(ended[2])


def code_in(logs: Iterable[Path]) -> int | None:
    """Return the exit code of a job's command from the logs of its Snakemake on a node; None without one."""
    for path in logs:
        with suppress(OSError):
            code = exit_code(path.read_text(encoding="utf-8", errors="replace"))
            if code is not None:
                return code
    return None


def attach() -> Recorder:
    """Record the events of the Snakemake of this process from here on."""
    recorder = Recorder()
    logging.getLogger("snakemake.logging").addHandler(recorder)
    return recorder


def without_retries(restart_times: property, rejected: Collection[int]) -> property:
    """Return Snakemake's property of a job, how often it is retried, which is now 0 for those in `rejected`."""
    return property(lambda job: 0 if job.jobid in rejected else restart_times.__get__(job))
