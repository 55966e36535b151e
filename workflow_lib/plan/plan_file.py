"""plan.json: the runs and the study of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workflow_lib import config, files
from workflow_lib.config.experiment import Experiment
from workflow_lib.config.renamed import with_stored_names
from workflow_lib.errors import ConfigError
from workflow_lib.plan.expansion import Run, base, expand
from workflow_lib.plan.frozen import freeze
from workflow_lib.plan.naming import data_id, run_digest
from workflow_lib.plan.sources import trained_first
from workflow_lib.plan.study import all_configs, study_definition, study_digest, study_id
from workflow_lib.store import layout
from workflow_lib.store.layout import WORK


def plan(experiment: Experiment, runs: Sequence[Run]) -> dict[str, Any]:
    """Return the plan as JSON values: the runs, those that are trained before them, and the study."""
    listed = [
        {"id": run.id, "digest": run.digest, "data_id": run.data_id, "swept": with_stored_names(run.swept)}
        for run in runs
    ]
    needed = trained_first(all_configs(experiment, runs), {run.id: run for run in runs}, WORK)
    first = {"trained_first": [{"id": run.id, "digest": run.digest} for run in needed.values()]} if needed else {}
    return {"experiment": experiment.name, "runs": listed, **first, "study": _study(experiment)}


def reported_runs(plan_file: Path) -> list[str]:
    """Return the names of the runs in a plan.json, with `tuned` if it has a study."""
    try:
        written = files.read_json(plan_file)
        return [*(str(run["id"]) for run in written["runs"]), *(["tuned"] if written["study"] else [])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{plan_file}: not a plan that `everstep freeze` wrote: {error}") from error


def _study(experiment: Experiment) -> dict[str, Any] | None:
    if experiment.tune is None:
        return None
    return {
        "id": study_id(experiment),
        "digest": study_digest(experiment),
        "base": run_digest(base(experiment)),
        "data_id": data_id(experiment),
        "trials": experiment.tune.trials,
        "window": experiment.tune.window,
    }


def plan_digest(experiment: Experiment, runs: Sequence[Run]) -> str:
    """Return a digest of the runs and the study; settings that change no run, such as labels, do not change it."""
    return config.digest(plan(experiment, runs), "plan")


def write_plan(experiment: Experiment, work: Path, output: Path, runs: Sequence[Run] | None = None) -> None:
    """Freeze every run and the definition of the study, then write the plan; ``runs`` are those of the experiment."""
    runs = expand(experiment) if runs is None else runs
    for run in (*runs, *trained_first(all_configs(experiment, runs), {run.id: run for run in runs}, work).values()):
        freeze(run.config, work, run.digest)
    if experiment.tune is not None:
        frozen = layout.study_file(work, study_digest(experiment))
        if not frozen.exists():
            files.write_json(frozen, study_definition(experiment))
    files.write_json(output, plan(experiment, runs))
