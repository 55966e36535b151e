"""The checks of an experiment file that need no training: the same as before a pipeline starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workflow_lib import config, plan, snakefile
from workflow_lib.errors import ConfigError
from workflow_lib.plan import preview
from workflow_lib.results import claims
from workflow_lib.results.layout import RESULTS
from workflow_lib.store.layout import WORK
from workflow_lib.text import count


def validated(file: Path, settings: Sequence[str]) -> list[str]:
    """Return how many runs the file has, and notes; raise ConfigError with every problem."""
    experiment = config.load([file], settings)
    runs = plan.expand(experiment)
    claims.check(RESULTS, experiment.name, claims.claim_of([file], settings))
    first = plan.trained_first(plan.all_configs(experiment, runs), {run.id: run for run in runs}, WORK)
    everything = [*runs, *first.values()]
    data = [experiment.data, *(run.config.data for run in everything)]
    snakefile.check_named_files([*data, *snakefile.models(experiment, everything)], f"{file}: ")
    found = preview.look(plan.all_configs(experiment, everything), experiment.runtime, Path.cwd())
    if found.problems:
        raise ConfigError("\n".join(f"{file}: {problem}" for problem in found.problems))
    trials = f", {count(experiment.tune.trials, 'trial')}" if experiment.tune else ""
    return [f"valid; {count(len(runs), 'run')}{trials}", *found.notes]
