"""The state of every run in the store, read from its files, also during a training.

Nothing here waits for a lock, asks the scheduler or writes. An owner on this host is looked up among the processes; an
owner on another host counts as alive while its heartbeat is recent.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workflow_lib import checkpoint, config
from workflow_lib.checkpoint import Checkpoint
from workflow_lib.errors import ConfigError
from workflow_lib.files import UNREADABLE, names_in, read_json
from workflow_lib.housekeeping import failed_jobs
from workflow_lib.housekeeping.failed_jobs import UnfinishedJob
from workflow_lib.results import layout as results_layout
from workflow_lib.store import accounting, failure_record, layout
from workflow_lib.store import attempts as ws
from workflow_lib.store.accounting import Account
from workflow_lib.store.events import last_event, read_events
from workflow_lib.store.final_checkpoint import is_finished
from workflow_lib.store.lease import Holder, last_seen

Row = dict[str, Any]

SILENT_S = 120.0  # twice the default runtime.lease_timeout_s; twice the owner's timeout if that is longer
PROGRESS = ("progress", "epoch")
STATES = (
    "new",
    "running",
    "waiting",
    "stopped",
    "killed",
    "failed",
    "diverged",
    "stalled",
    "pruned",
    "trained",
    "evaluating",
    "exporting",
    "finished",
    "damaged",
)
RECENT_BYTES = 1 << 13  # at least the last thirty events; parsing them takes most of the time of a long status


def runs(work: Path, results: Path) -> list[Row]:
    """Return a row for each run and data, latest activity first; planned runs that have not begun come last.

    Raises PermissionError if the store or the results must not be read.
    """
    for folder in (work, layout.runs_dir(work), results):
        if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    planned = _planned_names(results)
    names = _result_names(results, {*planned.values()}) | planned
    rows = [_row(workspace, names) for workspace in layout.all_workspaces(work)]
    begun = {row["digest"] for row in rows}
    rows.sort(key=lambda row: str(row["updated"]), reverse=True)
    jobs, trained = failed_jobs.of_runs(results), failed_jobs.without_results(results)
    rows = [row | _job(row, jobs.get(row["digest"][:12]), trained) for row in rows]
    return rows + [_blank(digest, names) for digest in planned if digest not in begun]


def chosen(rows: Sequence[Row], results: Path, experiment: str | None, states: Sequence[str]) -> list[Row]:
    """Return the rows of the runs of an experiment that have one of the states; None and an empty list are all.

    Raises ConfigError if the experiment is not planned, or a state does not exist.
    """
    for state in states:
        if state not in STATES:
            raise ConfigError(f"--state {state}: allowed: {', '.join(STATES)}")
    if experiment is not None:
        name = config.load([Path(experiment)]).name if experiment.endswith((".yaml", ".yml")) else Path(experiment).name
        folder = results / name
        if not results_layout.plan_file(folder).exists():
            planned = ", ".join(path.parent.name for path in results_layout.all_plans(results)) or "none"
            raise ConfigError(f"{experiment}: no planned experiment; there are: {planned}")
        names = named_in(
            [results_layout.plan_file(folder), *folder.glob("tune/*/suggest-*.json"), *folder.glob("tune/*/best.json")]
        )
        rows = [row for row in rows if row["digest"] in names]
    return [row for row in rows if not states or row["state"] in states]


def is_held(workspace: Path) -> bool:
    """Return True if a process owns the workspace, as far as this host can tell."""
    seen = last_seen(workspace)
    return seen is not None and _is_presumed_alive(*seen)


def _is_presumed_alive(holder: Holder, silent_s: float) -> bool:
    return holder.is_of_this_host() or silent_s <= max(SILENT_S, 2 * holder.timeout_s)


def _planned_names(results: Path) -> dict[str, str]:
    """Return the names of runs by digest from plans and studies; the first one found counts."""
    return named_in([*results_layout.all_plans(results), *results_layout.all_pointers(results)])


def named_in(paths: Iterable[Path]) -> dict[str, str]:
    """Return the names of the runs in plans, and in files that name a run, by digest; unreadable files are left out."""
    names: dict[str, str] = {}
    for path in paths:
        try:
            content = read_json(path)
            is_plan = path.name == results_layout.PLAN
            for run in [*content["runs"], *content.get("trained_first", [])] if is_plan else [content["run"]]:
                names.setdefault(str(run["digest"]), str(run["id"]))
        except UNREADABLE:
            continue
    return names


def _result_names(results: Path, planned: Set[str]) -> dict[str, str]:
    """Return the names of runs that have results but are no longer in a plan, by digest."""
    names: dict[str, str] = {}
    for runs in (results_layout.runs_dir(results / experiment) for experiment in names_in(results)):
        for name in names_in(runs):
            if name not in planned:  # skips reading thousands of files whose names are known
                with suppress(*UNREADABLE):
                    names.setdefault(str(read_json(runs / name / results_layout.TRAIN)["digest"]), name)
    return names


def planned(digest: str, name: str) -> Row:
    """Return the row of a run that has not begun."""
    return _blank(digest, {digest: name})


def _blank(digest: str, names: dict[str, str], state: str = "new") -> Row:
    """Return the row of a run without a workspace."""
    return {
        "run": names.get(digest, digest[:12]),
        "digest": digest,
        "data": None,
        "workspace": None,
        "state": state,
        "why": None,
        "step": 0,
        "steps": None,
        "epoch": 0,
        "epochs": None,
        "samples_per_s": None,
        "left_s": None,
        "loss": None,
        "select_metric": None,
        "metrics": {},
        "exact": True,
        "checkpoint": None,
        "checkpoint_age_s": None,
        "attempts": [],
        "owner": None,
        "account": {**vars(Account())},
        "updated": "",
    }


def _row(workspace: Path, names: dict[str, str]) -> Row:
    digest = workspace.parent.name
    place = {"data": workspace.name[:12], "workspace": str(workspace)}
    try:
        return _blank(digest, names) | place | _workspace_values(workspace)
    except UNREADABLE as error:
        return _blank(digest, names, "damaged") | place | {"why": f"{type(error).__name__}: {error}"}


def _workspace_values(workspace: Path) -> Row:
    """Return the values of a row that the files of a workspace contain."""
    newest = checkpoint.read_newest(layout.checkpoints_dir(workspace))
    saved = newest.step if newest else 0
    attempts = accounting.complete_reached(ws.list_attempts(workspace), saved)
    seen = last_seen(workspace)
    held = seen if seen and _is_presumed_alive(*seen) else None
    events = layout.events_file(workspace)
    recent = read_events(events, RECENT_BYTES) if held else []  # unused without an owner
    progress = last_event(events, PROGRESS, RECENT_BYTES)
    validated = progress if progress is None or progress["kind"] == "epoch" else last_event(events, ("epoch",), 1 << 16)
    last = attempts[-1] if attempts else None
    waiting = _waiting(recent, held[0].attempt) if held else None
    rejected = None if last or held else failure_record.read(workspace)  # before its first attempt
    state = "waiting" if waiting else "failed" if rejected else _state(newest, last, held is not None)
    training = read_json(layout.config_of(workspace))["training"]
    step, epoch = saved, newest.about["cursor"]["epoch"] if newest else 0
    speed: float | None = None
    left_s: float | None = None
    if held and state == "running":
        current = [e for e in recent if e.get("kind") in PROGRESS and e.get("attempt") == held[0].attempt]
        reached = [record.reached or 0 for record in attempts if record.attempt == held[0].attempt]
        step = max([saved, *reached, *(event["step"] for event in current)])
        # completed epochs
        epoch = max([epoch, *(int(event["epoch"]) - (event["kind"] == "progress") for event in current)])
        if current:
            speed, left_s = current[-1]["samples_per_s"], _left_s(current[-1])
    return {
        "state": state,
        "why": waiting
        or (rejected.message if rejected else None)
        or (last.reason if last and state in ("failed", "diverged", "stalled") else None),
        "step": step,
        "steps": progress["steps"] if progress else training.get("max_steps"),
        "epoch": epoch,
        "epochs": training["epochs"],
        "samples_per_s": speed,
        "left_s": left_s,
        "loss": progress.get("loss", progress.get("train_loss")) if progress else None,
        "select_metric": training["select_metric"],
        "metrics": {name: value for name, value in (validated or {}).items() if name.startswith("val_")},
        "exact": newest.about["exact"] if newest else True,
        "checkpoint": newest.path.name if newest else None,
        "checkpoint_age_s": max(0.0, time.time() - newest.manifest["created"]) if newest else None,
        "attempts": _attempts(attempts, held[0] if held else None),
        "owner": _owner(*seen, is_alive=held is not None) if seen else None,
        "account": {**vars(accounting.account_of(attempts, len(read_events(layout.delivered_file(workspace)))))},
        "updated": (last.ended or last.began) if last else "",
    }


def _job(row: Row, job: UnfinishedJob | None, trained: Set[str]) -> Row:
    """Return what changes in the row of a trained run that is not evaluated and exported."""
    if row["state"] != "finished":
        return {}
    if job is not None:
        return {"state": job.state, "why": job.text or None}
    return {"state": "trained"} if row["digest"][:12] in trained else {}


def _state(newest: Checkpoint | None, last: ws.Attempt | None, is_held: bool) -> str:
    if is_finished(newest):
        return "finished"
    if is_held:
        return "running"
    if last is None:
        return "new"
    word = re.split("[: ]", last.reason or "killed")[0]
    if word in ("raised", "rejected"):
        return "failed"
    return "damaged" if word == "finished" else word  # finished, but the final checkpoint is missing


def _left_s(event: Mapping[str, Any]) -> float | None:
    """Return the seconds that a training still takes, from its estimate in an event; None without one."""
    left_s: float | None = event.get("left_s")
    if left_s is None:
        return None
    age_s = (datetime.now(UTC) - datetime.fromisoformat(event["time"])).total_seconds()
    return max(0.0, left_s - max(0.0, age_s))  # the clock of its host may differ


def _waiting(recent: Sequence[Row], attempt: str) -> str | None:
    """Return the reason why the attempt is waiting if its last event says so, else None."""
    own = [event for event in recent if event.get("attempt") == attempt and event.get("kind") != "log"]
    return str(own[-1].get("reason")) if own and own[-1].get("kind") == "waiting" else None


def _attempts(attempts: Sequence[ws.Attempt], holder: Holder | None) -> list[Row]:
    return [
        {
            "attempt": record.attempt,
            "began": record.began,
            "ended": record.reason or ("running" if holder and holder.attempt == record.attempt else "killed"),
            "host": record.host,
            "job": record.job,
            "saved": record.step,
            "reached": record.reached,
            "steps": accounting.computed_steps(record),
            "redone": redone,
            "seconds": record.seconds,
            "gpu_seconds": record.gpu_seconds,
        }
        for record, redone in zip(attempts, accounting.redone_steps(attempts), strict=True)
    ]


def _owner(holder: Holder, silent_s: float, *, is_alive: bool) -> Row:
    place = {"attempt": holder.attempt, "host": holder.host, "pid": holder.pid, "job": holder.job}
    return place | {
        "is_alive": is_alive,
        "is_running_here": holder.is_running_here(),
        "silent_s": round(silent_s, 1),
    }
