"""The files of a study: a suggestion and a result for each trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict, cast

from workflow_lib import files, plan
from workflow_lib.config.renamed import with_current_names, with_stored_names
from workflow_lib.errors import ConfigError, EverstepError
from workflow_lib.results import layout as results_layout

if TYPE_CHECKING:
    from workflow_lib.config import Experiment
    from workflow_lib.config.experiment import Tune

Row = Mapping[str, Any]
State = Literal["complete", "pruned", "failed"]


class RunReference(TypedDict):
    """A frozen run; every file that points to a run has this shape."""

    digest: str
    id: str


class Suggestion(TypedDict):
    """A trial before training: everything that its result depends on, except the training itself."""

    number: int
    study: str
    metric: str
    select_metric: str
    params: dict[str, Any]
    run: RunReference
    thresholds: list[float | None]
    maximized: NotRequired[list[str]]  # metrics of training.metrics of which a larger value is better


class Point(TypedDict):
    """The study's metric after a validation; `epoch` is whole, as an int, unless the validation is within an epoch."""

    epoch: float
    value: float | None


class Result(TypedDict):
    """A trial after training; `value` is the study's metric at `epoch`, the best validation by `select_metric`.

    `step` is that of a validation within an epoch.
    """

    number: int
    study: str
    state: State
    value: float | None
    epoch: float | None
    reason: str | None
    params: dict[str, Any]
    run: RunReference
    curve: list[Point]
    step: NotRequired[int]


def suggestion_path(tune_dir: Path, number: int) -> Path:
    return results_layout.suggestion_file(tune_dir, number)


def result_path(tune_dir: Path, number: int) -> Path:
    return results_layout.trial_file(tune_dir, number)


def load_suggestion(path: Path) -> Suggestion:
    content = files.read_json(path, *(Suggestion.__annotations__.keys() - {"maximized"}))
    return cast("Suggestion", content | {"params": with_current_names(content["params"])})


def load_result(path: Path) -> Result:
    content = files.read_json(path, *(Result.__annotations__.keys() - {"step"}))
    return cast("Result", content | {"params": with_current_names(content["params"])})


def write(output: Path, content: Mapping[str, Any]) -> None:
    """Write a file of the study; renamed settings keep their old names in it, so that existing studies continue."""
    files.write_signed(output, {**content, "params": with_stored_names(content["params"])})


def check_study(study: str, trials: Sequence[Suggestion | Result], tune_dir: Path) -> None:
    """Raise EverstepError if one of the trials belongs to another study."""
    for trial in trials:
        if trial["study"] != study:
            raise EverstepError(
                f"{tune_dir}: trial {trial['number']} belongs to study {trial['study']}, not to {study}: "
                "delete the folder, or give the study a folder of its own"
            )


def reference(experiment: Experiment, params: Mapping[str, Any], run: plan.RunConfig) -> RunReference:
    """Return the reference to a run of the experiment with these parameters."""
    digest = plan.run_digest(run)
    return RunReference(digest=digest, id=plan.run_id(experiment.name, params, digest))


def tune_of(experiment: Experiment) -> Tune:
    """Return the experiment's `tune` section with its metric filled in; raises ConfigError without one."""
    if experiment.tune is None:
        raise ConfigError("the experiment has no study: write a `tune:` section")
    return experiment.tune.model_copy(update={"metric": plan.study_metric(experiment)})
