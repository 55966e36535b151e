"""Jobs that have failed or run without a lease, by their logs, which Snakemake empties when it starts a job again.

A command that fails prints its reason as the last line of its log. One that was killed prints nothing; evaluations and
exports begin their logs with their process, so that a killed one is told from one that runs, on the host of both.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from workflow_lib.files import UNREADABLE, names_in, read_json
from workflow_lib.results import layout
from workflow_lib.results.read_runs import TUNED
from workflow_lib.store import job_process

LOGS = Path("logs")  # relative to the folder of the project
RECENT_BYTES = 1 << 13
DIGEST_OF_RUN = re.compile(r".*-([0-9a-f]{12})")
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(: .*)?")  # the last line of a traceback
LOGGED = re.compile(r"\d{4}-\d\d-\d\dT")  # the beginning of a line of the log
STOPPED = "stopped"
TRACEBACK = "Traceback (most recent call last):"
# rules whose job is about a run, with the statement that it writes and the state of the run meanwhile
OF_RUN = {"evaluate": (layout.EVALUATION, "evaluating"), "export": (layout.EXPORT, "exporting")}
# rules about an experiment, with their commands
OF_EXPERIMENT = {"plan": "freeze", "report": "report", "register": "register", "track": "track"}


@dataclass(frozen=True)
class UnfinishedJob:
    """A job that runs, or has failed and was not started again; `subject` is its run or data set, if it has one.

    One that was killed has no reason.
    """

    rule: str
    subject: str
    reason: str
    log: Path
    is_running: bool = False

    @property
    def state(self) -> str:
        """The state of its run."""
        return OF_RUN[self.rule][1] if self.is_running else "failed" if self.reason else "killed"

    @property
    def text(self) -> str:
        """The rule, the reason and the log; nothing if it runs."""
        if self.is_running:
            return ""
        if not self.reason:
            return f"{self.rule} was killed; the pipeline repeats it ({self.log})"
        return f"{self.rule} failed: {self.reason} ({self.log})"


def of_runs(results: Path) -> dict[str, UnfinishedJob]:
    """Return the evaluation or export of each trained run that failed or runs, by the first 12 digits of its digest."""
    found: dict[str, UnfinishedJob] = {}
    for experiment in names_in(results):
        for rule, (statement, _) in OF_RUN.items():
            for log in _logs(results, rule, experiment):
                folder = layout.run_dir(results / experiment, log.stem)
                if (folder / statement).exists() or not (folder / layout.TRAIN).exists():
                    continue  # without reading the log
                words = last_words(rule, log)
                is_gone = job_process.is_gone(log) if words is None else None
                if (words and not words.startswith(STOPPED)) or is_gone is not None:
                    job = UnfinishedJob(rule, log.stem, words or "", log, is_running=is_gone is False)
                    found.setdefault(_digest(folder), job)
    return found


def of_experiment(experiment: Path) -> list[UnfinishedJob]:
    """Return the failed jobs of an experiment, given by its results, that are not about one of its runs."""
    results, name = experiment.parent, experiment.name
    found = [
        UnfinishedJob("preprocess", log.stem, reason, log)
        for log in _logs(results, "preprocess", name)
        if not layout.data_manifest(experiment, log.stem).exists() and (reason := reason_of("preprocess", log))
    ]
    for rule, verb in OF_EXPERIMENT.items():
        log = results.parent / LOGS / rule / f"{name}.log"
        if reason := reason_of(verb, log):
            found.append(UnfinishedJob(rule, "", reason, log))
    return found


def without_results(results: Path) -> set[str]:
    """Return the first 12 digits of the planned runs that no experiment has evaluated and exported."""
    planned: dict[str, bool] = {}
    for path in layout.all_plans(results):
        try:
            plan = read_json(path)
            names = {str(run["id"]): str(run["digest"])[:12] for run in plan["runs"]}
            if plan["study"]:
                best = layout.best_file(layout.study_dir(path.parent, plan["study"]["id"]))
                names |= {TUNED: str(read_json(best)["run"]["digest"])[:12]} if best.exists() else {}
        except (*UNREADABLE, KeyError, TypeError):  # replaced just now, or of another version
            continue
        for name, digest in names.items():
            folder = layout.run_dir(path.parent, name)
            is_done = planned.get(digest, False) or all((folder / file).exists() for file, _ in OF_RUN.values())
            planned[digest] = is_done
    return {digest for digest, is_done in planned.items() if not is_done}


def _logs(results: Path, rule: str, experiment: str) -> list[Path]:
    folder = results.parent / LOGS / rule / experiment
    return [folder / name for name in names_in(folder) if name.endswith(".log")]


def _digest(folder: Path) -> str:
    """Return the first 12 digits of the run's digest, which its name ends with; the tuned run has another name."""
    if named := DIGEST_OF_RUN.fullmatch(folder.name):
        return named[1]
    with suppress(*UNREADABLE):
        return str(read_json(folder / layout.TRAIN)["digest"])[:12]
    return ""


def reason_of(verb: str, log: Path) -> str | None:
    """Return the reason why the command that wrote the log failed; None if it has not failed, or was stopped."""
    words = last_words(verb, log)
    return None if words is None or words.startswith(STOPPED) else words


def last_words(verb: str, log: Path) -> str | None:
    """Return why the command that wrote the log failed or was stopped; None if it does not say so."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - RECENT_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    lines = [line for line in text.splitlines() if line.strip()]
    prefix = f"everstep {verb}: "
    for line in takewhile(lambda line: not LOGGED.match(line), reversed(lines)):
        if line.startswith(prefix):
            return line.removeprefix(prefix)
    last = lines[-1] if lines else ""
    if TRACEBACK not in text or not EXCEPTION.fullmatch(last):
        return None
    return STOPPED if last.startswith(KeyboardInterrupt.__name__) else last
