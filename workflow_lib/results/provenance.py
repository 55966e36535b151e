"""The provenance of a result: command, code, inputs and environment, so that anyone can reproduce it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import __version__, plan
from workflow_lib.config import sources
from workflow_lib.errors import UserError
from workflow_lib.files import file_digest as file_digest
from workflow_lib.files import read_json
from workflow_lib.plan import user_code
from workflow_lib.results import layout as results_layout
from workflow_lib.results import source_weights
from workflow_lib.results.statements import DIVERGED, DivergedTraining, Initialised, Provenance, Training, read_training
from workflow_lib.runtime import git
from workflow_lib.store import code_record, layout
from workflow_lib.text import aligned, count

if TYPE_CHECKING:
    import torch

    from workflow_lib.plan import RunConfig
    from workflow_lib.store.code_record import Acceptance

FEW_SAMPLES = 50  # with fewer, one sample changes a proportion by more than 2 %


def record(inputs: Sequence[Path], device: torch.device) -> Provenance:
    """Return the record of `made_by`, with the environment."""
    from workflow_lib.runtime import environment as telemetry

    environment = telemetry.environment(device) | telemetry.accelerator(device)
    return {**made_by(inputs), "environment": environment}


def made_by(inputs: Sequence[Path]) -> Provenance:
    """Return the current command, the code, and the digests of the input files."""
    commit, is_modified = git.of_code()
    return {
        "command": shlex.join(["python", "-m", "workflow_lib", *sys.argv[1:]]),
        "experiment": os.environ.get("EVERSTEP_EXPERIMENT"),
        "code": {"version": __version__, "commit": commit, "modified": is_modified},
        "inputs": {str(path): file_digest(path) for path in inputs},
    }


def trace(path: Path, work: Path) -> str:
    """Return the provenance of a file in the results folder of a run as text, with the command that regenerates it.

    Raises UserError for any other file.
    """
    statement = _statement(path)
    result = read_json(statement)
    if not isinstance(result, dict) or not {"run", "digest", "data"} <= result.keys():
        raise UserError(f"{statement}: not a result of a run (train.json, evaluation.json or export.json)")
    trained = read_training(statement.with_name(results_layout.TRAIN))
    ended: dict[str, str] = {DIVERGED: trained["reason"]} if "state" in trained else {"sealed in": trained["sealed"]}
    made = result.get("provenance", {})
    code = made.get("code", {"version": "unknown", "commit": None, "modified": None})
    rows: dict[str, object] = {
        "file": path,
        "run": result["run"],
        "config": layout.run_config(work, result["digest"]),
        "data": result["data"],
        "trained": f"{trained['steps']} steps, {trained['epochs']} epochs, attempts: {trained['attempts']}",
        **ended,
        **({"accepted": accepted_words(trained["accepted"])} if "accepted" in trained else {}),
        **_started_from(trained, statement),
        "code": f"everstep {code['version']}, commit {code['commit'] or 'unknown'}"
        + (" with uncommitted changes" if code["modified"] else ""),
        "made by": made.get("command", "unknown"),
    }
    for name, digest in made.get("inputs", {}).items():
        rows[f"from {name}"] = digest + _change(Path(name), digest)
    rows["again"] = rebuild_command(path, made.get("experiment"))
    return "\n".join(aligned([(name, str(value)) for name, value in rows.items()]))


def _started_from(trained: Training | DivergedTraining, statement: Path) -> dict[str, str]:
    """Return rows about the weights of other runs or files that the training used, if it did."""
    if "state" in trained:
        return {}
    rows = {
        setting: f"{found['run']} ({found['digest']}){_since(found['run'], found['digest'], statement)}"
        for setting, found in trained.get("sources", {}).items()
    }
    if "initialised" in trained:
        found = trained["initialised"]
        left = f"; drawn at random: {', '.join(found['not_taken'])}" if found["not_taken"] else ""
        since = _since(found["from"], found["digest"], statement)
        rows["started from"] = f"{found['from']} ({found['digest']}){since}, {found['taken']} weights{left}"
    return rows


def _since(source: str, digest: str | None, statement: Path) -> str:
    """Return a note if the weights of a run or a file are missing, or others than those that the training used."""
    if not sources.is_run(source):
        if not Path(source).exists():
            return " (gone)"
        now = user_code.content_digest(Path(source), plan.INIT)
    else:
        experiment = statement.resolve().parents[2]
        weights = source_weights.newest(source, experiment.parent, experiment.name)
        found = {} if weights is None else source_weights.digests_of({source: weights})
        if source not in found:
            return " (gone)"
        now = found[source]
    return "" if now == digest else f" (its weights differ now: {now})"


def changes(trained: Training, run: RunConfig, folder: Path, work: Path) -> Iterator[str]:
    """Yield lines on the code and the data of a trained run that are others now; `folder` has its results."""
    workspace = layout.parent_workspace(layout.checkpoint_path(work, trained["digest"], trained["sealed"]))
    results, experiment = folder.parents[2], folder.parents[1]
    try:
        code = user_code.digest(run, source_weights.digests(run, results, experiment.name))
        current = layout.workspace_path(work, trained["digest"], trained["data"], code)
        accepted = code_record.read_acceptance(current)
        if workspace.name not in (current.name, accepted and accepted["workspace"]):
            yield "the code, or a file that a setting names, has changed since the training (`everstep explain RUN`)"
    except (UserError, OSError) as error:
        yield f"the code of the training is not there now: {error}"
    manifest = results_layout.data_manifest(experiment, plan.data_id(run))
    if not manifest.exists():
        yield f"its data is not prepared now ({manifest})"
    elif read_json(manifest, "digest")["digest"] != trained["data"]:
        yield f"the data has changed since the training ({manifest})"


def started_from_words(found: Initialised) -> str:
    """Return the note on a run that started from given weights."""
    left = f", {count(len(found['not_taken']), 'weight')} drawn at random" if found["not_taken"] else ""
    return f"starts from {found['from']}{left}"


def accepted_words(record: Acceptance) -> str:
    """Return the note for a result that was accepted for changed code."""
    return f"was trained with other code, and accepted by {record['by']} at {record['time']}"


def inexact_words() -> str:
    """Return the note on a run whose statement says `exact: false`."""
    return "is not exact: trained again, it may give other weights"


def caution(samples: int, split: str = "test") -> str:
    """Return the note to be shown beside every metric of a small split; an empty string for a large one."""
    name = "test" if split == "test" else "validation"
    return f"only {samples} {name} samples" if samples < FEW_SAMPLES else ""


def rebuild_command(path: Path, experiment: str | None) -> str:
    """Return the command that regenerates the file, even if it exists and is up to date."""
    return shlex.join(["everstep", "run", *([experiment] if experiment else []), "--", "--force", str(path)])


def _statement(path: Path) -> Path:
    """Return the statement that describes a result. Raises UserError if there is none."""
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".json":
        return path
    statement = results_layout.STATEMENT_OF.get(path.name, results_layout.TRAIN)
    if not path.with_name(statement).exists():
        raise UserError(
            f"{path}: no {statement} beside it to say where it comes from. Give a file of one run: "
            f"results/EXPERIMENT/runs/RUN/*"
        )
    return path.with_name(statement)


def _change(path: Path, digest: str) -> str:
    """Return a note if the input is missing or has changed since it was read; else an empty string."""
    if not path.exists():
        return " (gone)"
    return "" if file_digest(path) == digest else " (changed since)"
