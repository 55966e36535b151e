"""Evaluations and exports that a pack computed, handed out by the jobs of the rules without computing them again.

    work/runs/<run>/<data>-<code>/computed/<digest>/     the files of a result, and checksums.json, written last

The digest stands for everything that a result depends on: the run, its data, code and weights, the stage, its settings,
the number of threads, and the version of torch. A result that does not verify is not used: the job then computes.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import config, plan
from workflow_lib.errors import EverstepError, StateError, UserError
from workflow_lib.files import UNREADABLE, file_digest, read_json, write_atomic, write_json, write_signed
from workflow_lib.plan import user_code
from workflow_lib.ready import THREADS
from workflow_lib.results import layout as results_layout
from workflow_lib.results import provenance, source_weights, write_run
from workflow_lib.results.statements import read_evaluation, read_training
from workflow_lib.runtime import packages
from workflow_lib.store import layout

if TYPE_CHECKING:
    from workflow_lib.config import Experiment

logger = logging.getLogger(__name__)
CHECKSUMS = "checksums.json"
FILES = {  # of each stage: its statement, then the file beside it
    "evaluate": (results_layout.EVALUATION, results_layout.PREDICTIONS),
    "export": (results_layout.EXPORT, results_layout.ONNX),
}


def packs_compute(experiment: Experiment) -> bool:
    """Return True if packs evaluate and export: on the CPU, which `auto` allows, since trainings use the GPU."""
    return not experiment.evaluate.device.startswith("cuda")


def place(
    stage: str, experiment: Experiment, *, run: str, data: Path, work: Path, model: Path, evaluation: Path | None = None
) -> Path:
    """Return the folder of the result of a stage for these weights.

    An export also depends on the ``evaluation``. Raises UserError if that is about other weights, or if the run
    diverged.
    """
    write_run.trained(model, work)
    weights = file_digest(model)
    settings, digest = plan.load_run(run, work)
    code = user_code.digest(settings, source_weights.digests(settings, results_layout.RESULTS, experiment.name))
    measured = None if evaluation is None else read_evaluation(evaluation)
    if measured is not None and measured["model"] != weights:
        raise UserError(f"{evaluation} is about other weights than {model}")
    key = {
        "stage": plan.STAGES[stage],
        "settings": plan.section_digest(experiment, stage),
        "run": read_json(Path(run))["run"]["id"] if run.endswith(".json") else run,
        "code": code,
        "data": file_digest(data),  # the manifest with its names, which are no part of its own digest
        "model": weights,
        "metrics": None if measured is None else measured["metrics"],
        "threads": os.environ.get(THREADS),
        "torch": packages.version("torch"),
    }
    workspace = layout.workspace_path(work, digest, read_json(data, "digest")["digest"], code)
    return layout.computed_dir(workspace) / config.digest(key, stage)


def is_kept(stage: str, folder: Path) -> bool:
    """Return True if the folder has a result of the stage that verifies."""
    try:
        _verified(folder, *FILES[stage])
    except (StateError, *UNREADABLE):
        return False
    return True


def keep(stage: str, results: Path, folder: Path) -> None:
    """Copy the result of the stage from the folder ``results`` to its place; its checksums are written last."""
    for name in FILES[stage]:
        write_atomic(folder / name, (results / name).read_bytes())
    write_signed(folder / CHECKSUMS, {name: file_digest(folder / name) for name in FILES[stage]})


def copy(stage: str, folder: Path, results: Path) -> None:
    """Copy a result that is kept to the folder ``results``."""
    for name in FILES[stage]:
        write_atomic(results / name, (folder / name).read_bytes())


def hand_out(
    stage: str,
    experiment: Experiment,
    *,
    run: str,
    data: Path,
    work: Path,
    model: Path,
    output: Path,
    evaluation: Path | None = None,
) -> bool:
    """Write the result that a pack computed to ``output`` and beside it; return False if there is none.

    Its provenance names this command and its inputs, like that of a result that this command computes.
    """
    try:
        trained = read_training(model.with_name(results_layout.TRAIN))
        workspace = layout.workspace_path(work, trained["digest"], trained["data"], trained["code"])
        if "state" in trained or not layout.computed_dir(workspace).exists():
            return False  # before the weights, which may be large, are read
        if not packs_compute(experiment):
            return False
        folder = place(stage, experiment, run=run, data=data, work=work, model=model, evaluation=evaluation)
        statement, other = _verified(folder, *FILES[stage])
    except (EverstepError, *UNREADABLE) as error:
        logger.debug("nothing is handed out: %s", error)  # the job itself reports what is wrong
        return False
    inputs = [data, model, *([] if evaluation is None else [evaluation])]
    environment = {**statement["provenance"]["environment"], "command": sys.argv}
    write_atomic(output.with_name(FILES[stage][1]), other)
    write_json(output, {**statement, "provenance": {**provenance.made_by(inputs), "environment": environment}})
    logger.info("%s: computed in a pack", output)
    return True


def _verified(folder: Path, statement: str, other: str) -> tuple[dict[str, Any], bytes]:
    """Return the statement and the content of the other file. Raises StateError if one is damaged."""
    checksums = read_json(folder / CHECKSUMS, statement, other)
    for name in (statement, other):
        if file_digest(folder / name) != checksums[name]:
            raise StateError(f"{folder / name}: damaged")
    return read_json(folder / statement), (folder / other).read_bytes()
