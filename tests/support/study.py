"""A study with simulated trials, and its jobs as the rules declare them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import config, tuning

if TYPE_CHECKING:
    import optuna

SPACE = {
    "optimizer.lr": {"type": "float", "low": 1e-5, "high": 0.1, "log": True},
    "training.batch_size": {"type": "int", "low": 16, "high": 128, "step": 16},
    "training.label_smoothing": {"type": "float", "low": 0.0, "high": 0.4, "step": 0.1},
    "schedule.name": {"type": "categorical", "choices": ["constant", "cosine"]},
}
EPOCHS = 6

Choose = Callable[[list[str]], str]
Row = dict[str, Any]


def make_experiment(folder: Path, training: dict[str, Any] | None = None, **tune: Any) -> config.Experiment:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "experiment.json"
    section = {"space": SPACE, "trials": 12, "window": 3, "min_trials": 2, **tune}
    values = {"name": "demo", "training": {"epochs": EPOCHS, **(training or {})}, "tune": section}
    path.write_text(json.dumps(values))
    return config.load([path])


def curve(params: dict[str, Any], epochs: int = EPOCHS) -> list[Row]:
    """Return the metrics that a training with these parameters would have measured."""
    lr, smoothing = params.get("optimizer.lr", 1e-3), params.get("training.label_smoothing", 0.1)
    batch, is_cosine = params.get("training.batch_size", 64), params.get("schedule.name") == "cosine"
    peak = 0.9 + 0.05 * is_cosine - 0.02 * (math.log10(lr) + 3) ** 2 - smoothing / 8 - batch / 4000
    rows = []
    for epoch in range(1, epochs + 1):
        accuracy = peak * (1 - 0.5**epoch) - (0.01 if epoch == epochs else 0.0)
        rows.append({"epoch": epoch, "step": 10 * epoch, "val_accuracy": accuracy, "val_loss": 1 - accuracy})
    return rows


def train(suggestion: tuning.Suggestion) -> list[Row]:
    """Return the history of a trial, which asks after each validation whether to stop."""
    stop_early, history = tuning.pruner(suggestion), []
    for row in curve(suggestion["params"]):
        history.append(row)
        if stop_early(history):
            break
    return history


@dataclass(frozen=True)
class Study:
    """The study of an experiment in a folder, and its jobs as the rules declare them."""

    experiment: config.Experiment
    folder: Path

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def tune_dir(self) -> Path:
        return self.folder / "tune"

    def suggest(self, number: int) -> tuning.Suggestion:
        output = tuning.suggestion_path(self.tune_dir, number)
        return tuning.suggest(self.experiment, number, self.tune_dir, self.work, output)

    def trial(self, number: int) -> tuning.Result:
        suggestion = tuning.load_suggestion(tuning.suggestion_path(self.tune_dir, number))
        return tuning.write_result(suggestion, train(suggestion), tuning.result_path(self.tune_dir, number))

    def load(self) -> optuna.Study:
        return tuning.load_study(self.experiment, self.tune_dir)

    def best(self) -> dict[str, Any]:
        return tuning.best(self.experiment, self.tune_dir, self.work, self.tune_dir / "best.json")

    def jobs(self) -> dict[str, list[str]]:
        """Return every job with the jobs that it waits for."""
        assert self.experiment.tune is not None
        window, needs = self.experiment.tune.window, {}
        for n in range(self.experiment.tune.trials):
            behind = [f"suggest-{n - 1:04d}.json", f"trial-{n - window:04d}.json"]
            needs[f"suggest-{n:04d}.json"] = behind[: 0 if n == 0 else 1 if n < window else 2]
            needs[f"trial-{n:04d}.json"] = [f"suggest-{n:04d}.json"]
        return needs

    def run(self, choose: Choose) -> Study:
        """Do every missing job in an order that its inputs allow; `choose` picks from the jobs that are ready."""
        needs = self.jobs()
        while missing := [job for job in needs if not (self.tune_dir / job).exists()]:
            ready = [job for job in missing if all((self.tune_dir / need).exists() for need in needs[job])]
            kind, number = choose(ready).removesuffix(".json").split("-")
            (self.suggest if kind == "suggest" else self.trial)(int(number))
        return self

    def content(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.tune_dir.glob("*.json"))}


def trials_first(ready: list[str]) -> str:
    """Choose one job at a time, each trial as soon as it is suggested."""
    return next((job for job in ready if job.startswith("trial")), ready[0])


def trials_last(ready: list[str]) -> str:
    """Choose as many trials at once as the window allows; the newest ends first."""
    return next((job for job in ready if job.startswith("suggest")), ready[-1])
