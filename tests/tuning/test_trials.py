from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import optuna

from tests.support.repository import ROOT
from tests.support.study import Study, curve, make_experiment, trials_first
from workflow_lib import tuning


def test_a_failed_trial_does_not_stop_the_study(tmp_path: Path) -> None:
    study = Study(make_experiment(tmp_path, pruner="median"), tmp_path)
    suggestion = study.suggest(0)
    failed = tuning.write_result(
        suggestion, curve({})[:2], tuning.result_path(study.tune_dir, 0), failure="the loss is NaN at step 21"
    )
    assert (failed["state"], failed["value"]) == ("failed", None)
    study.run(trials_first)
    assert study.best()["number"] > 0
    assert tuning.load_study(study.experiment, study.tune_dir).trials[0].state == optuna.trial.TrialState.FAIL


def test_a_trial_without_a_finite_value_failed(tmp_path: Path) -> None:
    suggestion = Study(make_experiment(tmp_path), tmp_path).suggest(0)
    rows = [{"epoch": 1, "step": 10, "val_accuracy": float("nan"), "val_loss": float("nan")}]
    result = tuning.write_result(suggestion, rows, tmp_path / "result.json")
    assert result["state"] == "failed"
    assert result["curve"] == [{"epoch": 1, "value": None}]
    assert tuning.load_result(tmp_path / "result.json") == result


def test_the_value_is_that_of_the_epoch_whose_state_the_run_keeps(tmp_path: Path) -> None:
    """The best accuracy is at epoch 3; the run keeps the state with the lowest loss, at epoch 2 first."""
    suggestion = Study(make_experiment(tmp_path), tmp_path).suggest(0)
    losses, accuracies = [0.5, 0.25, 0.4, 0.25], [0.6, 0.7, 0.8, 0.75]
    rows = [
        {"epoch": epoch, "val_loss": loss, "val_accuracy": accuracy}
        for epoch, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), start=1)
    ]
    result = tuning.result(suggestion, rows)
    assert (result["epoch"], result["value"], result["state"]) == (2, 0.7, "complete")
    assert [point["value"] for point in result["curve"]] == accuracies


REAL = """
import sys
from pathlib import Path
from workflow_lib import config, plan, data, tuning
from workflow_lib.errors import Stopped

experiment, work = config.load([Path("experiment.json")]), Path("work")
data.preprocess(experiment, plan.data_id(experiment), work, Path("data.json"))
tuning.suggest(experiment, 0, Path("tune"), work, Path("tune/suggest-0000.json"))

def trial(deadline_minutes=None):
    output = Path("tune/trial-0000.json")
    return tuning.trial(experiment, Path("tune/suggest-0000.json"), data=Path("data.json"), work=work,
                        output=output, deadline_minutes=deadline_minutes)
"""


def run_real(folder: Path, program: str, low: float, high: float) -> str:
    """Suggest the first trial of a study of the learning rate, run the program, and return what it printed."""
    space = {"optimizer.lr": {"type": "float", "low": low, "high": high}}
    make_experiment(folder, {"epochs": 2}, space=space)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", REAL + program]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_training_that_diverges_is_a_failed_trial(tmp_path: Path) -> None:
    """A few seconds: a real training."""
    run_real(tmp_path, "trial()", 1e30, 1e31)
    result = tuning.load_result(tmp_path / "tune" / "trial-0000.json")
    assert (result["state"], result["value"]) == ("failed", None)
    assert "diverged" in (result["reason"] or "")


def test_a_trial_that_was_stopped_has_no_result(tmp_path: Path) -> None:
    """A few seconds: a real training that its deadline stops, and that is resumed."""
    program = """
try:
    trial(deadline_minutes=1e-9)
except Stopped:
    print("stopped", Path("tune/trial-0000.json").exists())
print(trial()["state"])
"""
    assert run_real(tmp_path, program, 1e-3, 2e-3).splitlines() == ["stopped False", "complete"]
