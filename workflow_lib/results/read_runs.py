"""The results of the runs of an experiment, read from the output files of the rules."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import plugins
from workflow_lib.config.measures import maximized
from workflow_lib.errors import StateError
from workflow_lib.results import layout as results_layout
from workflow_lib.results import provenance
from workflow_lib.results.configurations import group
from workflow_lib.results.statements import (
    DIVERGED,
    DivergedTraining,
    Evaluation,
    Export,
    Training,
    read_evaluation,
    read_export,
    read_training,
)
from workflow_lib.store import accounting
from workflow_lib.store.accounting import Account
from workflow_lib.store.job_process import BEGINS
from workflow_lib.text import training_place

if TYPE_CHECKING:
    from workflow_lib.config import Experiment

TUNED = "tuned"

STEPS = {
    "train": (results_layout.TRAIN, "not trained"),
    "evaluate": (results_layout.EVALUATION, "not evaluated"),
    "export": (results_layout.EXPORT, "not exported"),
}

Row = dict[str, Any]


@dataclass(frozen=True)
class RunResults:
    """All results of a run; `name` is the name of its folder."""

    name: str
    settings: Row  # this run's value of each setting that differs between the runs
    train: Training
    evaluation: Evaluation
    export: Export
    history: list[Row]
    is_counted_in_steps: bool
    select_metric: str
    maximized: Sequence[str]  # metrics of training.metrics of which a larger value is better
    account: Account
    has_own_loss: bool = False  # of the user, who may subtract: nothing is known about its range

    @property
    def task(self) -> str:
        return str(self.evaluation["task"])

    @property
    def id(self) -> str:
        return str(self.evaluation["run"])

    @property
    def metrics(self) -> list[str]:
        """The metrics of the evaluation: those of the task, then those of `training.metrics`."""
        return list(dict.fromkeys((*plugins.task_facts(self.task).metrics, *self.evaluation["metrics"])))

    @property
    def caution(self) -> str:
        """A note to be shown beside every metric of a small split; empty for a large one."""
        return provenance.caution(self.evaluation["samples"], self.evaluation["split"])

    def best(self) -> tuple[float, int]:
        """Return the best value of the metric that ranks the runs, and its epoch."""
        chosen = self._best()
        return chosen["value"], chosen["epoch"]

    @property
    def length(self) -> float:
        """The length of the training in the unit that it is counted in: steps or epochs."""
        return self.train["steps"] if self.is_counted_in_steps else self.train["epochs"]

    @property
    def best_place(self) -> str:
        """The place of the best value in the training: `epoch 3`, or `step 750` if the training is counted in steps."""
        best = self._best()
        return f"step {best['step']:,}" if self.is_counted_in_steps else training_place(best["epoch"], best["step"])

    def _best(self) -> Row:
        chosen: Row = {**self.train["best"]}
        if chosen["metric"] == self.select_metric:
            return chosen
        from workflow_lib.config.metrics import best_row

        row = best_row(self.history, self.select_metric, self.maximized) or {}
        return {"value": row[self.select_metric], "epoch": row["epoch"], "step": row["step"]}

    def rank(self) -> tuple[float, float]:
        """Return a sort key: the best run first, ties by the lowest validation loss."""
        from workflow_lib.config.metrics import gain

        losses = [row["val_loss"] for row in self.history if row["val_loss"] is not None]
        return -gain(self.select_metric, self.best()[0], self.maximized), min(losses, default=math.inf)

    def export_error(self) -> float:
        """Return the largest absolute difference between outputs of the ONNX model and of torch."""
        check = self.export["check"]
        return float(max(compared["max_abs_error"] for compared in (*check["batches"], check["split"])))

    def row(self) -> Row:
        """Return the row of the table of runs."""
        best = self._best()
        row: Row = {"name": self.name, "run": self.id, **self.settings}
        row |= {"select_metric": self.select_metric, "select_value": best["value"]}
        row |= {"best_epoch": best["epoch"], "best_step": best["step"]}
        for name in self.metrics:
            metric = self.evaluation["metrics"][name]
            row |= {name: metric["value"], f"{name}_low": metric["low"], f"{name}_high": metric["high"]}
        row |= {"epochs": self.train["epochs"], "steps": self.train["steps"], "seconds": self.train["seconds"]}
        row |= {"attempts": self.train["attempts"], "parameters": self.train["parameters"]}
        account = self.account
        of_test = self.evaluation["split"] == "test"
        row |= {"test_samples" if of_test else "validation_samples": self.evaluation["samples"]}
        row |= {"gpu_seconds": account.used_gpu_s, "cpu_seconds": account.used_cpu_s}
        row |= {"lost_seconds": account.lost_s, "steps_redone": account.redone}
        row |= {"failed_attempts": account.failed, "failed_seconds": account.failed_s}
        row |= {"saved_seconds": account.saved_s, "reused": account.reused}
        return row | {"onnx_max_abs_error": self.export_error(), "digest": self.train["digest"]}


def load_results(experiment: Experiment, results: Path, runs: Sequence[str], work: Path) -> list[RunResults]:
    """Return the results of the runs, those of the best configuration first, each with its most typical run first.

    Raises StateError if a run diverged.
    """
    from workflow_lib import plan
    from workflow_lib.config.length import is_counted_in_steps

    varied = {name for run in plan.expand(experiment) for name in run.swept}
    if TUNED in runs and experiment.tune:
        varied |= experiment.tune.space.keys()
    found = []
    for name in runs:
        folder = results_layout.run_dir(results, name)
        train = read_training(folder / results_layout.TRAIN)
        if "state" in train:
            raise StateError(f"{folder / results_layout.TRAIN}: the training diverged, so there are no results")
        run = plan.load_run(train["digest"], work)[0]
        config = run.model_dump(mode="json")
        found.append(
            RunResults(
                name=name,
                settings={setting: _setting_of(config, setting) for setting in sorted(varied)},
                train=train,
                evaluation=read_evaluation(folder / results_layout.EVALUATION),
                export=read_export(folder / results_layout.EXPORT),
                history=read_history(folder / results_layout.HISTORY),
                is_counted_in_steps=is_counted_in_steps(run.training),
                select_metric=experiment.training.select_metric,
                maximized=maximized(experiment.training),
                account=account_of(train, work),
                has_own_loss=run.training.loss is not None or run.training.step is not None,
            )
        )
    return [run for configuration in group(found) for run in configuration.runs]


@dataclass(frozen=True)
class Unfinished:
    """A run without complete results: the first missing step, and the last line of its log.

    A run that diverged as a point of a sweep has the state `diverged`, and the reason of the divergence.
    """

    name: str
    state: str
    reason: str
    account: Account = Account()

    @property
    def has_diverged(self) -> bool:
        return self.state == DIVERGED

    def row(self) -> Row:
        """Return the row of the table of runs."""
        return {"name": self.name, "state": self.state, "reason": self.reason}


def unfinished(results: Path, runs: Sequence[str], work: Path) -> list[Unfinished]:
    """Return the runs that diverged or lack a result, with the reason."""
    found = []
    for name in runs:
        folder = results_layout.run_dir(results, name)
        train = read_training(folder / results_layout.TRAIN) if (folder / results_layout.TRAIN).exists() else None
        if train is not None and "state" in train:
            found.append(Unfinished(name, DIVERGED, train["reason"], account_of(train, work)))
            continue
        for step, (file, state) in STEPS.items():
            if not (folder / file).exists():
                log = Path("logs", step, results.name, f"{name}.log")
                found.append(Unfinished(name, state, _last_line(log) or "not begun"))
                break
    return found


def _last_line(log: Path) -> str | None:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    said = [line.strip() for line in lines if line.strip() and f" {BEGINS}" not in line]
    return said[-1] if said else ("begun" if lines else None)


def account_of(train: Training | DivergedTraining, work: Path) -> Account:
    """Return the cost of the run from its workspace or, if that was removed, the part that its statement contains."""
    from workflow_lib.store import layout

    if "state" in train:
        workspace = layout.workspace_path(work, train["digest"], train["data"], train["code"])
    else:
        workspace = layout.parent_workspace(layout.checkpoint_path(work, train["digest"], train["sealed"]))
    if workspace.exists():
        return accounting.account(workspace)
    used = train["seconds"]
    return Account(attempts=train["attempts"], steps=train["steps"], used_s=used, used_cpu_s=used)


def _setting_of(config: Any, name: str) -> Any:
    """Return the setting with this dotted name; None if the run has none, e.g. with another model or optimizer."""
    for part in name.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def read_history(path: Path) -> list[Row]:
    """Return the rows of a learning curve; values that are missing or not finite are None."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _number(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> float | int | None:
    try:
        return int(text)
    except ValueError:
        value = float(text or "nan")
        return value if math.isfinite(value) else None
