"""Writes the results of a training: weights, learning curve and, last, the statement that the rules wait for."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from workflow_lib import checkpoint, plan, plugins
from workflow_lib.checkpoint import Checkpoint
from workflow_lib.errors import CheckpointError, StateError, UserError
from workflow_lib.files import REMAKE, file_digest, write_atomic
from workflow_lib.results import layout as results_layout
from workflow_lib.results import provenance, steps
from workflow_lib.results.statements import (
    DIVERGED,
    Diverged,
    DivergedTraining,
    Initialised,
    Provenance,
    Training,
    read_training,
    write_diverged_step,
    write_training,
)
from workflow_lib.store import attempts as ws
from workflow_lib.store import code_record, layout
from workflow_lib.store.events import read_events

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """The run that a statement is about."""

    digest: str
    data: str  # digest of the manifest
    code: str  # digest of the user's code and files
    task: plugins.Task
    select_metric: str
    workspace: Path
    sources: Mapping[str, str]  # ids of the runs whose weights it uses, by setting


def write(final: Checkpoint, run: TrainedRun, data: Path, output: Path) -> None:
    """Write the weights, the learning curve and, last, the statement of a finished run."""
    sys.audit("everstep", "outputs")
    state = checkpoint.read_state(final)["progress"]
    model = _weights(final)
    write_atomic(output.with_name(results_layout.MODEL), model)
    write_atomic(output.with_name(results_layout.HISTORY), _csv(state["history"], run.task))
    steps.write(steps.read(final), output)
    best, metric = state["best"], run.select_metric
    seconds, attempts = _cost(layout.parent_workspace(final.path))
    statement: Training = {
        "run": run.digest[:12],
        "digest": run.digest,
        "data": run.data,
        "code": run.code,
        "seconds": seconds,
        "attempts": attempts,
        "sealed": str(final.path),
        "exact": final.about["exact"],
        "steps": final.step,
        "epochs": state["history"][-1]["epoch"],
        "best": {"metric": metric, "value": best[metric], "epoch": best["epoch"], "step": best["step"]},
        "final": state["history"][-1],
        "model": checkpoint.digest(model),
        "parameters": final.about["parameters"],
        "environment": final.about["environment"],
        "provenance": _provenance(run, data),
    }
    is_of_other_code = final.manifest["fingerprint"].get("code") != run.code
    if is_of_other_code and (acceptance := code_record.read_acceptance(run.workspace)) is not None:
        statement["accepted"] = acceptance
    used = (code_record.read(layout.parent_workspace(final.path)) or {"files": {}})["files"]
    if "initialised" in final.about:
        statement["initialised"] = cast("Initialised", {**final.about["initialised"], "digest": used.get(plan.INIT)})
    if taught_by := {name: ref for name, ref in run.sources.items() if name != plan.INIT}:
        statement["sources"] = {name: {"run": ref, "digest": used.get(name)} for name, ref in taught_by.items()}
    sys.audit("everstep", "statement")
    write_training(output, statement)


def write_diverged(reason: str, step: int, run: TrainedRun, data: Path, output: Path) -> None:
    """Write the statement of a run that diverged, and its learning curve so far; the file of the weights is empty."""
    history = read_events(layout.metrics_file(run.workspace))
    write_atomic(output.with_name(results_layout.MODEL), b"")
    write_atomic(output.with_name(results_layout.HISTORY), _csv(history, run.task))
    steps.write(read_events(layout.steps_file(run.workspace)), output)
    seconds, attempts = _cost(run.workspace)
    statement: DivergedTraining = {
        "run": run.digest[:12],
        "digest": run.digest,
        "data": run.data,
        "code": run.code,
        "seconds": seconds,
        "attempts": attempts,
        "state": DIVERGED,
        "reason": reason,
        "steps": step,
        "epochs": history[-1]["epoch"] if history else 0,
        "provenance": _provenance(run, data),
    }
    write_training(output, statement)
    logger.warning("%s; as a point of a sweep, this is its result", reason)


def _cost(workspace: Path) -> tuple[float, int]:
    """Return the wall seconds and the number of all attempts."""
    attempts = ws.list_attempts(workspace)
    return round(sum(attempt.seconds or 0.0 for attempt in attempts), 3), len(attempts)


def _provenance(run: TrainedRun, data: Path) -> Provenance:
    return provenance.made_by([layout.config_of(run.workspace), data])


def pass_on_divergence(model: Path, output: Path, empty: str) -> bool:
    """If the run diverged, write a statement of that to `output`, an empty file `empty` beside it, and return True."""
    source = model.with_name(results_layout.TRAIN)
    training = read_training(source)
    if "state" not in training:
        return False
    write_atomic(output.with_name(empty), b"")
    statement: Diverged = {
        "run": training["run"],
        "digest": training["digest"],
        "data": training["data"],
        "code": training["code"],
        "state": training["state"],
        "reason": training["reason"],
        "provenance": provenance.made_by([source]),
    }
    write_diverged_step(output, statement)
    logger.info("the training diverged, so there is nothing to do: %s", training["reason"])
    return True


def trained(model: Path, work: Path) -> Training:
    """Return the statement of the trained weights, after verifying their digest.

    Damaged weights are restored from the final checkpoint of the run.

    Raises:
        StateError: The final checkpoint is missing or damaged, too.
        UserError: The run diverged.
    """
    source = model.with_name(results_layout.TRAIN)
    statement = read_training(source)
    if "state" in statement:
        raise UserError(f"{model}: there are no weights: {statement['reason']}")
    if file_digest(model, size=32) != statement["model"]:
        path = layout.checkpoint_path(work, statement["digest"], statement["sealed"])
        content = _restored(path, statement["model"])
        if content is None:
            raise StateError(f"{model}: damaged: these are not the weights that {source} describes. {REMAKE}")
        logger.warning("%s was damaged: its weights are restored from the final checkpoint of the run", model)
        write_atomic(model, content)
    return statement


def _restored(final: Path, digest: str) -> bytes | None:
    """Return the weights from a final checkpoint; None if they are missing, damaged or have another digest."""
    try:
        content = _weights(checkpoint.read_manifest(final))
    except (CheckpointError, OSError):
        return None
    return content if checkpoint.digest(content) == digest else None


def _weights(final: Checkpoint) -> bytes:
    return checkpoint.read_group_file(final, "best") or checkpoint.read_group_file(final, "model") or b""


def _csv(history: Sequence[Mapping[str, Any]], task: plugins.Task) -> str:
    """Return the learning curve as CSV text, with numbers that read back exactly."""
    curves = plugins.task_facts(task).curves
    first = ("epoch", "step", "lr", *(name for name in curves if not history or name in history[0]))
    columns = (*first, *sorted(history[0].keys() - first if history else ()))
    lines = [",".join(columns), *(",".join(_cell(row[name]) for name in columns) for row in history)]
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    """Return a number with every digit; nothing for a metric that has no value."""
    return "" if value is None else repr(value)
