"""What a finished run hands out: weights, history and, last, the statement that the rules wait for."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import checkpoint, plugins
from workflow_lib.checkpoint import Checkpoint
from workflow_lib.errors import CheckpointError, StateError, UserError
from workflow_lib.files import REMAKE, file_digest, read_json, write_atomic, write_json
from workflow_lib.results import layout as results_layout
from workflow_lib.results import provenance
from workflow_lib.results.provenance import DIVERGED
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


def write(sealed: Checkpoint, run: TrainedRun, data: Path, output: Path) -> None:
    """Weights, history and, last, the statement of a finished run."""
    sys.audit("everstep", "outputs")
    state = checkpoint.read_state(sealed)["progress"]
    model = _weights(sealed)
    write_atomic(output.with_name(results_layout.MODEL), model)
    write_atomic(output.with_name(results_layout.HISTORY), _csv(state["history"], run.task))
    accepted = {} if sealed.manifest["fingerprint"].get("code") == run.code else code_record.accepted(run.workspace)
    sys.audit("everstep", "statement")
    write_json(
        output,
        {
            **_common(run, layout.parent_workspace(sealed.path), data),
            **({"accepted": accepted} if accepted else {}),
            "sealed": str(sealed.path),
            "exact": sealed.about["exact"],
            "steps": sealed.step,
            "epochs": len(state["history"]),
            "best": {
                "metric": run.select_metric,
                "value": state["best"][run.select_metric],
                "epoch": state["best"]["epoch"],
                "step": state["best"]["step"],
            },
            "final": state["history"][-1],
            "model": checkpoint.digest(model),
            "parameters": sealed.about["parameters"],
            "environment": sealed.about["environment"],
        },
    )


def write_diverged(reason: str, step: int, run: TrainedRun, data: Path, output: Path) -> None:
    """The statement of a run that diverged, and its curve so far; the file of the weights is empty."""
    history = read_events(layout.metrics_file(run.workspace))
    write_atomic(output.with_name(results_layout.MODEL), b"")
    write_atomic(output.with_name(results_layout.HISTORY), _csv(history, run.task))
    write_json(
        output,
        {
            **_common(run, run.workspace, data),
            "state": DIVERGED,
            "reason": reason,
            "steps": step,
            "epochs": len(history),
        },
    )
    logger.warning("%s; as a point of a sweep, this is its result", reason)


def _common(run: TrainedRun, workspace: Path, data: Path) -> dict[str, Any]:
    """The part of a statement that every run has: its names, its cost in that workspace, and its inputs."""
    attempts = ws.list_attempts(workspace)
    return {
        "run": run.digest[:12],
        "digest": run.digest,
        "data": run.data,
        "code": run.code,
        "seconds": round(sum(attempt.seconds or 0.0 for attempt in attempts), 3),
        "attempts": len(attempts),
        "provenance": provenance.made_by([layout.config_of(run.workspace), data]),
    }


def hand_on_divergence(model: Path, output: Path, empty: str) -> bool:
    """Where the run diverged, ``output`` says so, and the file ``empty`` beside it is empty; else nothing is done."""
    statement = model.with_name(results_layout.TRAIN)
    trained = read_json(statement, "digest", "data", "code")
    if trained.get("state") != DIVERGED:
        return False
    said = {name: trained[name] for name in ("run", "digest", "data", "code", "state", "reason")}
    write_atomic(output.with_name(empty), b"")
    write_json(output, {**said, "provenance": provenance.made_by([statement])})
    logger.info("the training diverged, so there is nothing to do: %s", trained["reason"])
    return True


def trained(model: Path, work: Path) -> dict[str, Any]:
    """The statement of the trained weights, which are those that it tells of.

    Damaged weights are written again from the final state of their run, where it is still whole; else a StateError
    names the file.
    """
    statement = model.with_name(results_layout.TRAIN)
    told: dict[str, Any] = read_json(statement, "digest", "data", "code")
    if told.get("state") == DIVERGED:
        raise UserError(f"{model}: there are no weights: {told['reason']}")
    told = read_json(statement, "digest", "data", "code", "model", "sealed")
    if file_digest(model, size=32) != told["model"]:
        content = _regenerated(layout.checkpoint_path(work, told["digest"], told["sealed"]), told["model"])
        if content is None:
            raise StateError(f"{model}: damaged: these are not the weights that {statement} tells of. {REMAKE}")
        logger.warning("%s was damaged: its weights are written again from the final state of the run", model)
        write_atomic(model, content)
    return told


def _regenerated(sealed: Path, digest: str) -> bytes | None:
    """The weights of that digest in a final state; None where they are not there, or damaged too."""
    try:
        content = _weights(checkpoint.read_manifest(sealed))
    except (CheckpointError, OSError):
        return None
    return content if checkpoint.digest(content) == digest else None


def _weights(sealed: Checkpoint) -> bytes:
    return checkpoint.whole(sealed, "best") or checkpoint.whole(sealed, "model") or b""


def _csv(history: Sequence[Mapping[str, Any]], task: plugins.Task) -> str:
    """The curve as a table; numbers read back exactly."""
    columns = ("epoch", "step", "lr", *plugins.task_facts(task).curves)
    lines = [",".join(columns), *(",".join(repr(row[name]) for name in columns) for row in history)]
    return "\n".join(lines) + "\n"
