"""Records what Snakemake does in a file, one JSON line an event, for the `everstep run` that started it.

plan       an experiment is read: its results folder and runs, and if the jobs run on this machine
jobs       number of jobs by rule
started    the jobs begin: this is no dry run
job        a job starts, or starts again: id, rule, wildcards, log
finished   the job with this id is finished
failed     the job with this id failed
message    a line of Everstep for the user
error      the reason why the pipeline ends without success
nothing    there is nothing to do
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from workflow_lib.store.events import EventLog

PATH, COMMAND = "EVERSTEP_EVENTS", "EVERSTEP_COMMAND"  # environment variables


def record(kind: str, **fields: Any) -> None:
    """Append an event to the file that `everstep run` reads; do nothing if Snakemake was started otherwise."""
    if path := os.environ.get(PATH):
        EventLog(Path(path)).append(kind, **fields)


class Recorder(logging.Handler):
    """Records the events of Snakemake's logger."""

    def emit(self, entry: logging.LogRecord) -> None:
        from snakemake.common import NOTHING_TO_BE_DONE_MSG

        values = vars(entry)
        match values.get("event"):
            case "run_info":
                record("jobs", counts=values["stats"])
            case "job_info":
                named = {name: str(value) for name, value in values["wildcards"].items()}
                record("job", id=values["jobid"], rule=values["rule_name"], wildcards=named, log=[*values["log"]])
            case "job_finished":
                record("finished", id=values["job_id"])
            case "job_error":
                record("failed", id=values["jobid"])
            case "error" | None if entry.levelno >= logging.ERROR:
                record("error", text=entry.getMessage())
            case None if entry.getMessage() == NOTHING_TO_BE_DONE_MSG:
                record("nothing")


def attach() -> None:
    """Record the events of the Snakemake of this process, if `everstep run` started it."""
    if os.environ.get(PATH):
        logging.getLogger("snakemake.logging").addHandler(Recorder())
