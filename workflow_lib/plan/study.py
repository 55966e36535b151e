"""The study of an experiment: its base run, metric, digest and name."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from workflow_lib import config, files, plugins
from workflow_lib.config.experiment import CategoricalSpace, Experiment
from workflow_lib.config.metric_checks import measured
from workflow_lib.config.renamed import with_current_names, with_stored_names
from workflow_lib.config.run import RunConfig
from workflow_lib.config.stages import STAGES
from workflow_lib.errors import ConfigError
from workflow_lib.plan.expansion import Run, apply, base
from workflow_lib.plan.frozen import freeze
from workflow_lib.results import layout as results_layout
from workflow_lib.store import layout
from workflow_lib.text import slug

# settings that may name code of the user, beside those of the model
USER_CODE = ("training.hooks", "training.loss", "training.metrics", "training.step", "optimizer.name", "schedule.name")


def tuned_base(experiment: Experiment) -> RunConfig:
    """Return the base run of the study, which its trials vary: the experiment with `tune.set`."""
    if experiment.tune is None:
        raise ConfigError("the experiment has no study: write a `tune:` section")
    return apply(base(experiment), experiment.tune.set, "tune.set")


def all_configs(experiment: Experiment, runs: Iterable[Run]) -> list[RunConfig]:
    """Return the settings of the experiment's runs, and of runs that its study may use."""
    return [*(run.config for run in runs), *studied(experiment)]


def studied(experiment: Experiment) -> list[RunConfig]:
    """Return runs that together use every model, hook and file that a trial or the best run may use."""
    if (tune := experiment.tune) is None:
        return []
    found = [tuned_base(experiment), base(experiment)]
    for name, space in sorted(tune.space.items()):
        if isinstance(space, CategoricalSpace) and name.startswith(("model.", *USER_CODE)):
            for start in found[:2]:
                for choice in space.choices:
                    with suppress(ConfigError):  # a setting of another model than the experiment's
                        found.append(apply(start, {name: choice}))
    return found


def freeze_study(experiment: Experiment, folder: Path, work: Path) -> None:
    """Freeze the runs that the study's files refer to, if work/ was deleted after they were written."""
    for path in results_layout.pointers(folder):
        content = files.read_json(path, "run", "params")
        if not layout.run_config(work, content["run"]["digest"]).exists():
            start = base(experiment) if path.name == results_layout.BEST else tuned_base(experiment)
            freeze(apply(start, with_current_names(content["params"]), str(path)), work)


def study_definition(experiment: Experiment) -> dict[str, Any]:
    """Return everything that the suggestions of the study depend on: its settings and its base run."""
    if experiment.tune is None:
        raise ConfigError("the experiment has no study: write a `tune:` section")
    tune = with_stored_names({"tune": config.identity(experiment.tune)})["tune"]
    return {
        "tune": tune | {"metric": study_metric(experiment)},
        "base": config.identity(tuned_base(experiment)),
        "stage": STAGES["suggest"],
    }


def study_metric(experiment: Experiment) -> str:
    """Return the metric that the study optimizes: `tune.metric`, or the default for the task of the data."""
    if experiment.tune is not None and experiment.tune.metric is not None:
        return experiment.tune.metric
    task = plugins.task(experiment.data.name, experiment.data.params)
    default = plugins.task_facts(task).study_metric
    return default if default in measured(experiment.training, task) else "val_loss"


def study_digest(experiment: Experiment) -> str:
    """Return the digest of the study: 32 hex digits. The number of trials does not change it."""
    return config.digest(study_definition(experiment), "study")


def study_id(experiment: Experiment) -> str:
    """Return `<experiment>-<12 hex>`."""
    return f"{slug(experiment.name)}-{study_digest(experiment)[:12]}"
