"""The runs that are compared. An experiment stands for its best run, the first in its table of runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import tasks
from workflow_lib.errors import DataError, UserError
from workflow_lib.results import layout as results_layout
from workflow_lib.results import references
from workflow_lib.results.read_runs import Row, read_history
from workflow_lib.results.statements import Evaluation, Training, read_evaluation, read_training
from workflow_lib.text import decimal, flatten

if TYPE_CHECKING:
    from workflow_lib.metrics.outcomes import Outcomes


@dataclass(frozen=True)
class Subject:
    """A run with its results.

    name      as it was given
    settings  all settings of the run, by dotted name
    over      means and deviations over seeds or folds, if the run stands for an experiment that repeats it
    """

    name: str
    folder: Path
    train: Training
    evaluation: Evaluation
    history: list[Row]
    settings: dict[str, Any]
    over: str = ""

    @property
    def title(self) -> str:
        """The name, and the run that it stands for."""
        return self.name if self.name == self.folder.name else f"{self.name} (run {self.folder.name})"

    def outcomes(self) -> Outcomes | None:
        """Return the predictions for the test split; None if they cannot be read."""
        return outcomes_of(self.folder, self.evaluation)


def outcomes_of(folder: Path, evaluation: Evaluation) -> Outcomes | None:
    """Return the predictions in the folder of a run; None if they cannot be read."""
    read = tasks.load(evaluation["task"]).outcomes
    path = folder / results_layout.PREDICTIONS
    if read is None or not path.exists() or not path.stat().st_size:
        return None
    try:
        return read(path, evaluation)
    except DataError:  # written by an evaluation of the user's task
        return None


def find(ref: str, results: Path, work: Path) -> Subject:
    """Return the run or the experiment. Raises ConfigError or UserError if there is none, or it has no evaluation."""
    from workflow_lib import plan

    folder, experiment = references.find(ref, results)
    configurations = references.rows(experiment / results_layout.CONFIGURATIONS) if experiment else []
    train = read_training(folder / results_layout.TRAIN)
    if "state" in train:
        raise UserError(f"{ref}: the training of {folder.name} diverged, so there is nothing to compare")
    if not (folder / results_layout.EVALUATION).exists():
        raise UserError(f"{ref}: {folder.name} is not evaluated yet; run the pipeline again")
    run, _ = plan.load_run(train["digest"], work)
    return Subject(
        name=folder.name if Path(ref).name == folder.name else ref,
        folder=folder,
        train=train,
        evaluation=read_evaluation(folder / results_layout.EVALUATION),
        history=read_history(folder / results_layout.HISTORY),
        settings=flatten(run.model_dump(mode="json")),
        over=_over(next(iter(configurations), {})),
    )


def _over(row: dict[str, str]) -> str:
    """Return the means of the best configuration in words; an empty string if it was not repeated."""
    if int(row.get("runs", 1)) < 2:
        return ""
    means = [
        f"{name} {decimal(float(row[name]))} ± {decimal(float(row[f'{name}_deviation']))}"
        for name in row
        if name != "select_value" and row.get(f"{name}_deviation") and row[name]
    ]
    return f"over its {row['runs']} seeds or folds: {', '.join(means)}"
