"""The study of an experiment: the run that it varies, its metric and its names."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from workflow_lib import config, files, plugins
from workflow_lib.config.experiment import CategoricalSpace, Experiment
from workflow_lib.config.run import METRICS, RunConfig
from workflow_lib.config.stages import STAGES
from workflow_lib.errors import ConfigError
from workflow_lib.plan.frozen import freeze
from workflow_lib.plan.runs import apply, base, slug


def tuned_base(experiment: Experiment) -> RunConfig:
    """The run that the trials of the study vary: the experiment with `tune.set`."""
    if experiment.tune is None:
        raise ConfigError("the experiment has no study: write a `tune:` section")
    return apply(base(experiment), experiment.tune.set, "tune.set")


def studied(experiment: Experiment) -> list[RunConfig]:
    """Runs with all the models, hooks and files that the trials of the study and its best run may have."""
    if (tune := experiment.tune) is None:
        return []
    found = [tuned_base(experiment), base(experiment)]
    for name, space in sorted(tune.space.items()):
        if isinstance(space, CategoricalSpace) and name.startswith(("model.", "training.hooks")):
            for start in found[:2]:
                for choice in space.choices:
                    with suppress(ConfigError):  # a setting of another model than that of the experiment
                        found.append(apply(start, {name: choice}))
    return found


def freeze_study(experiment: Experiment, folder: Path, work: Path) -> None:
    """The runs that the study's files name are frozen, also where the store was lost since."""
    for path in [*sorted(folder.glob("suggest-*.json")), *folder.glob("best.json")]:
        content = files.read_json(path, "run", "params")
        if not (work / "runs" / content["run"]["digest"] / "config.json").exists():
            start = base(experiment) if path.name == "best.json" else tuned_base(experiment)
            freeze(apply(start, content["params"], str(path)), work)


def study_definition(experiment: Experiment) -> dict[str, Any]:
    """What decides the suggestions of the study: its settings and the run it varies."""
    if experiment.tune is None:
        raise ConfigError("the experiment has no study: write a `tune:` section")
    return {
        "tune": config.identity(experiment.tune) | {"metric": study_metric(experiment)},
        "base": config.identity(tuned_base(experiment)),
        "stage": STAGES["suggest"],
    }


def study_metric(experiment: Experiment) -> str:
    """What the study improves: what it names, or what is usual for the task of the data."""
    if experiment.tune is not None and experiment.tune.metric is not None:
        return experiment.tune.metric
    metrics = METRICS[plugins.task(experiment.data.name, experiment.data.params)]
    return "val_accuracy" if "val_accuracy" in metrics else "val_loss"


def study_digest(experiment: Experiment) -> str:
    """The name of the study: 32 hex digits; a larger number of trials is the same study."""
    return config.digest(study_definition(experiment), "study")


def study_id(experiment: Experiment) -> str:
    """`<experiment>-<12 hex>`."""
    return f"{slug(experiment.name)}-{study_digest(experiment)[:12]}"
