"""Jobs in the queue from a Snakemake that was killed: the next one waits for them, instead of submitting them again.

A job is taken over only if its script is the one that this Snakemake would submit: the same frozen experiment, snapshot
of the code, resources and number of the try. It keeps the environment variables with which it was submitted. Other jobs
are left alone; a new job of the same run then waits for them.
"""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from workflow_lib.slurm import job, queue

# options of the Snakemake in a job that name a folder of the Snakemake that submitted it
OF_ITS_PROCESS = ("--runtime-source-cache-path",)
OWN_FOLDER = re.compile(r".*/\.snakemake/tmp\.[^/]+")

Command = tuple[tuple[str, tuple[str, ...]], ...]
Submit = Callable[[Any, Any], None]


def command_in(script: str) -> Command | None:
    """Return the options of the command in a job's script, without what differs between two Snakemakes.

    None if the script is not a command. Snakemake writes the values of some options in any order.
    """
    options: list[tuple[str, list[str]]] = [("", [])]
    try:
        words = shlex.split("\n".join(line for line in script.splitlines() if not line.startswith("#")))
    except ValueError:
        return None
    for word in words:
        if word.startswith("--"):
            options.append((word, []))
        elif not OWN_FOLDER.fullmatch(word):
            options[-1][1].append(word)
    return tuple((name, tuple(sorted(values))) for name, values in options if name not in OF_ITS_PROCESS)


class Queued:
    """The jobs that were in the queue when this Snakemake started, each of which can be taken over once."""

    def __init__(self, folder: Path) -> None:
        self._numbers = queue.jobs_of(folder)
        self._by_command: dict[Command, str] | None = None
        self._lock = threading.Lock()

    def take(self, command: Callable[[], str], name: str) -> str | None:
        """Return the number of the job with this command, or None.

        It is given the name, by which the executor asks for the state of its jobs.
        """
        if not self._numbers:
            return None
        with self._lock:
            if self._by_command is None:
                scripts = {number: job.scontrol("write", "batch_script", number, "-") for number in self._numbers}
                found = {number: command_in(script) for number, script in scripts.items() if script is not None}
                self._by_command = {words: number for number, words in reversed(found.items()) if words is not None}
            wanted = command_in(command())
            number = self._by_command.pop(wanted, None) if wanted else None
        # fails if the job has ended meanwhile
        return number if number and job.scontrol("update", f"JobId={number}", f"JobName={name}") is not None else None


def taking_over(submit: Submit, folder: Path, never: Collection[str]) -> Submit:
    """Return the executor's function that submits a job, which now takes over an equal one from the queue.

    `folder` is the project; jobs of the rules in `never` are always submitted.
    """
    queued = Queued(folder)

    def submit_or_take_over(executor: Any, wanted: Any) -> None:
        from snakemake_executor_plugin_slurm.utils import get_job_wildcards
        from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

        report, logs = executor._report_job_submission_threadsafe, executor.slurm_logdir / f"rule_{wanted.name}"
        number = None
        if wanted.name not in never and executor.get_status_command() == "squeue":
            number = queued.take(lambda: executor.format_job_exec(wanted), executor.run_uuid)
        if number is None:
            submit(executor, wanted)
            return
        log = logs / get_job_wildcards(wanted) / f"{number}.log"
        executor.logger.info(f"Job {wanted.jobid} is SLURM job {number} of an earlier Snakemake (log: {log}).")
        report(SubmittedJobInfo(wanted, external_jobid=number, aux={"slurm_logfile": log}))

    return submit_or_take_over
