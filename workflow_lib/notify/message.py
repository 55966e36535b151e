"""Messages about an experiment. Equal facts give an equal key, whichever process tells them."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from workflow_lib import config
from workflow_lib.errors import shortened
from workflow_lib.files import UNREADABLE
from workflow_lib.notify.stalls import Stalled
from workflow_lib.results import layout as results_layout
from workflow_lib.results.statements import read_evaluation, read_training
from workflow_lib.store.attempts import utc_now
from workflow_lib.text import count

MOST_NAMED = 10  # failed jobs or stalled trainings in a text
MOST_CHARACTERS = 500  # of the reason of a failure
NUMBERS = re.compile(r"\b[0-9a-f]{8,}\b|\d+")  # ids, process numbers and times, which differ between equal failures


@dataclass(frozen=True)
class Message:
    """A message; `text` is for people. The key is equal for equal facts, so that a receiver can drop a repetition."""

    key: str
    event: str
    experiment: str
    title: str
    text: str
    time: str
    host: str
    folder: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Failure(NamedTuple):
    """A failed job: its name, the last line of its log, and a text that changes with the code that it runs."""

    job: str
    reason: str
    code: str


def ended(results: Path, runs: Sequence[str], lines: Mapping[str, object]) -> Message:
    """Return the message that all runs have results; `lines` describe the best one."""
    facts = {run: _result(results_layout.run_dir(results, run)) for run in runs}
    body = [f"{results.name} ended: {count(len(runs), 'run')}.", *(f"{name}: {value}" for name, value in lines.items())]
    return _message("end", results, f"{results.name} ended", body, facts)


def failed(results: Path, failures: Sequence[Failure], settings: str, resume: str) -> Message:
    """Return the message about failed jobs; `settings` is the digest of the experiment, `resume` the command."""
    facts = [settings, sorted([each.job, NUMBERS.sub("#", each.reason), each.code] for each in failures)]
    named = [f"{each.job}: {shortened(each.reason, MOST_CHARACTERS)}" for each in failures[:MOST_NAMED]]
    more = [f"and {len(failures) - MOST_NAMED} more"] if len(failures) > MOST_NAMED else []
    head = f"{results.name} failed: {count(len(failures), 'job')}. No finished work is lost."
    return _message("failure", results, f"{results.name} failed", [head, *named, *more, f"resume: {resume}"], facts)


def stalled(results: Path, found: Sequence[Stalled]) -> Message:
    """Return the message about trainings without progress."""
    facts = sorted([each.run, each.attempt] for each in found)
    named = [str(each) for each in found[:MOST_NAMED]]
    more = [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
    head = f"{results.name}: {count(len(found), 'training')} without progress; the pipeline goes on."
    return _message("stall", results, f"{results.name} has stalled", [head, *named, *more], facts)


def _result(folder: Path) -> Any:
    """Return what identifies the result of a run."""
    try:
        train = read_training(folder / results_layout.TRAIN)
        if "state" in train:
            return train["state"]
        return [train["model"], read_evaluation(folder / results_layout.EVALUATION)["metrics"]]
    except UNREADABLE as error:
        return type(error).__name__


def _message(event: str, results: Path, title: str, lines: Sequence[str], facts: Any) -> Message:
    host, folder = socket.gethostname(), str(Path.cwd())
    return Message(
        key=config.digest([results.name, event, facts], "notification"),
        event=event,
        experiment=results.name,
        title=f"Everstep: {title}",
        text="\n".join([*lines, f"on {host}, in {folder}"]),
        time=utc_now(),
        host=host,
        folder=folder,
    )
