"""Runs that are trained before others, which start from their weights or learn from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from workflow_lib.config import sources
from workflow_lib.config.run import RunConfig
from workflow_lib.config.step import run_arguments
from workflow_lib.errors import ConfigError
from workflow_lib.plan.expansion import Run
from workflow_lib.plan.frozen import load_run
from workflow_lib.plan.naming import data_id, run_digest

INIT, STEP_PARAMS = "model.init.from", "training.step_params"


def sources_of(run: RunConfig) -> dict[str, str]:
    """Return the ids of the runs whose results the run needs, by setting."""
    init = run.model.init
    of_step = run_arguments(run.training.step, run.training.step_params)
    return {
        **({INIT: init.run} if init.run is not None else {}),
        **{f"{STEP_PARAMS}.{name}": ref for name, ref in of_step.items()},
    }


def trained_first(runs: Iterable[RunConfig], planned: Mapping[str, Run], work: Path) -> dict[str, Run]:
    """Return the runs whose results the runs need, and those that these need, by id; without the planned ones.

    Raises ConfigError for an id that is neither planned, nor that of an experiment file, nor frozen in `work`.
    """
    found: dict[str, Run] = {}
    left = [*runs]
    while left:
        for setting, ref in sources_of(left.pop()).items():
            source = planned_id(ref, planned)
            if source not in planned and source not in found:
                config = _config(setting, ref, work)
                found[source] = Run(source, run_digest(config), config, {}, data_id(config))
                left.append(config)
    return found


def planned_id(ref: str, planned: Mapping[str, Run]) -> str:
    """Return the id under which the experiment plans this run, or else the given one: its name may differ."""
    return ref if ref in planned else next((name for name in planned if name[-12:] == ref[-12:]), ref)


def _config(setting: str, ref: str, work: Path) -> RunConfig:
    if (config := sources.known(ref)) is not None:
        return config
    try:
        return load_run(ref, work)[0]
    except ConfigError as error:
        raise ConfigError(
            f"{setting}: {error}. An experiment file can be given in place of the id of its only run; for a run of a "
            "sweep, start the pipeline of the sweep first"
        ) from error
