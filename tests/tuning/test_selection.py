from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.study import EPOCHS, Study, make_experiment, trials_first
from workflow_lib import files, plan, tuning
from workflow_lib.errors import EverstepError


def test_without_settings_for_trials_the_best_run_is_the_trials_own(tmp_path: Path) -> None:
    study = Study(make_experiment(tmp_path), tmp_path).run(trials_first)
    best = study.best()
    results = [tuning.load_result(tuning.result_path(study.tune_dir, n)) for n in range(12)]
    assert best["value"] == max(result["value"] or 0 for result in results)
    assert best["run"] == results[best["number"]]["run"]
    assert best["trials"] == 12


def test_the_best_run_is_trained_without_the_settings_of_trials(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path, set={"training.epochs": 2}, trials=4)
    study = Study(experiment, tmp_path).run(trials_first)
    best = study.best()
    run, digest = plan.load_run(str(study.tune_dir / "best.json"), study.work)
    assert run.training.epochs == EPOCHS
    assert run.optimizer.lr == best["params"]["optimizer.lr"]
    assert digest != tuning.load_result(tuning.result_path(study.tune_dir, best["number"]))["run"]["digest"]


def test_the_first_of_equal_trials_is_best(tmp_path: Path) -> None:
    study = Study(make_experiment(tmp_path, trials=4), tmp_path).run(trials_first)
    for n, value in enumerate([0.5, 0.75, 0.75, 0.25]):
        path = tuning.result_path(study.tune_dir, n)
        files.write_json(path, {**files.read_json(path), "value": value})
    assert study.best()["number"] == 1


def test_a_lower_loss_is_better(tmp_path: Path) -> None:
    study = Study(make_experiment(tmp_path, trials=4, metric="val_loss"), tmp_path).run(trials_first)
    results = [tuning.load_result(tuning.result_path(study.tune_dir, n)) for n in range(4)]
    assert study.best()["value"] == min(result["value"] or 9 for result in results)
    assert tuning.load_study(study.experiment, study.tune_dir).best_trial.number == study.best()["number"]


def test_only_a_complete_trial_is_best(tmp_path: Path) -> None:
    study = Study(make_experiment(tmp_path, trials=3), tmp_path).run(trials_first)
    states = ["pruned", "complete", "failed"]
    for n, (state, value) in enumerate(zip(states, [0.9, 0.5, None], strict=True)):
        path = tuning.result_path(study.tune_dir, n)
        files.write_json(path, {**files.read_json(path), "state": state, "value": value})
    assert study.best()["number"] == 1


def test_a_study_whose_trials_all_failed_says_why(tmp_path: Path) -> None:
    study = Study(make_experiment(tmp_path, trials=2), tmp_path)
    for n in range(2):
        result = tuning.result_path(study.tune_dir, n)
        tuning.write_result(study.suggest(n), [], result, failure="the loss is NaN")
    with pytest.raises(EverstepError, match="none of its 2 trials.*the loss is NaN"):
        study.best()
    assert not (study.tune_dir / "best.json").exists()
