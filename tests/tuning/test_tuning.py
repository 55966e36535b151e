from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.repository import ROOT
from tests.support.study import EPOCHS, SPACE, Study, curve, make_experiment, trials_first, trials_last
from workflow_lib import config, files, plan, tuning
from workflow_lib.errors import ConfigError, EverstepError


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    return Study(make_experiment(folder, pruner="median"), folder).run(trials_first)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_in_which_trials_finish_changes_nothing(
    finished: Study, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    other = Study(finished.experiment, tmp_path_factory.mktemp("other"))
    assert other.run(random.Random(seed).choice).content() == finished.content()


def test_one_trial_at_a_time_or_a_full_window_is_the_same_study(finished: Study, tmp_path: Path) -> None:
    assert Study(finished.experiment, tmp_path).run(trials_last).content() == finished.content()


def test_results_beyond_the_window_are_not_looked_at(finished: Study, tmp_path: Path) -> None:
    study = Study(finished.experiment, tmp_path).run(trials_first)
    before = tuning.suggestion_path(tmp_path / "tune", 9).read_bytes()
    for n in range(9 - 3 + 1, 12):
        tuning.result_path(tmp_path / "tune", n).write_text("not even JSON")
    study.suggest(9)
    assert tuning.suggestion_path(tmp_path / "tune", 9).read_bytes() == before


def test_a_result_within_the_window_is_looked_at(finished: Study, tmp_path: Path) -> None:
    study = Study(finished.experiment, tmp_path).run(trials_first)
    for n in range(9 - 3 + 1):
        path = tuning.result_path(tmp_path / "tune", n)
        result = files.read_json(path)
        files.write_json(path, {**result, "state": "complete", "value": 1 - result["value"]})
    assert study.suggest(9)["params"] != finished.suggest(9)["params"]


def test_a_suggestion_needs_the_newest_result_that_it_may_know(finished: Study, tmp_path: Path) -> None:
    study = Study(finished.experiment, tmp_path).run(trials_first)
    tuning.result_path(study.tune_dir, 9 - 3).unlink()
    with pytest.raises(FileNotFoundError, match="trial-0006"):
        study.suggest(9)


def test_the_trials_in_the_window_are_kept_away_from(tmp_path: Path) -> None:
    """Constant liar: what the waiting trials try counts, though their results are not known."""
    study = Study(make_experiment(tmp_path), tmp_path).run(trials_first)
    before = study.suggest(11)["params"]
    for n in (9, 10):
        path = tuning.suggestion_path(study.tune_dir, n)
        near = {**before, "optimizer.lr": before["optimizer.lr"] * (1 + n / 1000)}
        files.write_json(path, {**files.read_json(path), "params": near})
    assert study.suggest(11)["params"] != before


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_forty_suggestions_made_again_are_the_same_bytes(tmp_path: Path, sampler: str) -> None:
    experiment = make_experiment(tmp_path, sampler=sampler, trials=40, window=4, pruner="median")
    study = Study(experiment, tmp_path).run(trials_first)
    before = study.content()
    for n in random.Random(1).sample(range(40), 40):
        tuning.suggestion_path(study.tune_dir, n).unlink()
        study.suggest(n)
    assert study.content() == before
    params = [json.dumps(study.suggest(n)["params"]) for n in range(40)]
    assert len(set(params)) == 40


def test_another_process_with_other_hashing_gives_the_same_bytes(finished: Study, tmp_path: Path) -> None:
    snapshot = plan.freeze_experiment(finished.experiment, tmp_path)
    output = tmp_path / "again.json"
    command = [sys.executable, "-m", "workflow_lib", "suggest", "--experiment", str(snapshot)]
    command += ["--number", "11", "--tune-dir", str(finished.tune_dir), "--output", str(output)]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    assert output.read_bytes() == tuning.suggestion_path(finished.tune_dir, 11).read_bytes()


def test_more_trials_keep_the_first(tmp_path: Path) -> None:
    few, many = (make_experiment(tmp_path / str(n), trials=n, pruner="median") for n in (8, 12))
    assert plan.study_id(few) == plan.study_id(many)
    study = Study(few, tmp_path).run(trials_first)
    before = study.content()
    longer = Study(many, tmp_path).run(trials_first).content()
    assert {name: longer[name] for name in before} == before
    fresh = Study(many, tmp_path / "fresh").run(trials_last)
    assert fresh.content() == longer


def test_fewer_trials_leave_the_later_ones_out(finished: Study, tmp_path: Path) -> None:
    Study(finished.experiment, tmp_path).run(trials_first)
    shorter = Study(make_experiment(tmp_path / "few", trials=4, pruner="median"), tmp_path)
    assert len(tuning.load_study(shorter.experiment, shorter.tune_dir).trials) == 4
    assert shorter.best()["number"] < 4


@pytest.mark.parametrize(
    "changed",
    [
        {"space": {**SPACE, "optimizer.lr": {"type": "float", "low": 1e-5, "high": 0.2, "log": True}}},
        {"seed": 1},
        {"window": 4},
        {"sampler": "random"},
        {"pruner": "median"},
        {"set": {"training.epochs": 3}},
        {"metric": "val_loss"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_changes_suggestions_is_another_study(tmp_path: Path, changed: dict[str, Any]) -> None:
    before, after = make_experiment(tmp_path / "a"), make_experiment(tmp_path / "b", **changed)
    assert plan.study_id(before) != plan.study_id(after)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"window": 4}], ids=lambda changed: next(iter(changed)))
def test_another_study_has_other_random_numbers(tmp_path: Path, changed: dict[str, Any]) -> None:
    one, other = make_experiment(tmp_path / "a"), make_experiment(tmp_path / "b", **changed)
    assert Study(one, tmp_path / "a").suggest(0)["params"] != Study(other, tmp_path / "b").suggest(0)["params"]


def test_files_of_another_study_are_refused(finished: Study) -> None:
    other = make_experiment(finished.folder / "other", seed=5)
    with pytest.raises(EverstepError, match="belongs to study"):
        Study(other, finished.folder).suggest(5)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    low=st.floats(1e-12, 1e6, allow_subnormal=False),
    factor=st.one_of(st.floats(1 + 1e-9, 1 + 1e-6), st.floats(1.001, 1e9)),
    log=st.booleans(),
)
def test_suggested_numbers_lie_in_their_bounds_and_survive_json(
    tmp_path_factory: pytest.TempPathFactory, seed: int, low: float, factor: float, log: bool
) -> None:
    folder = tmp_path_factory.mktemp("bounds")
    space = {"optimizer.lr": {"type": "float", "low": low, "high": low * factor, "log": log}}
    suggestion = Study(make_experiment(folder, space=space, seed=seed), folder).suggest(0)
    assert low <= suggestion["params"]["optimizer.lr"] <= low * factor
    assert tuning.load_suggestion(tuning.suggestion_path(folder / "tune", 0)) == suggestion


def test_a_point_is_tried_once_while_there_are_others(tmp_path: Path) -> None:
    space = {"training.batch_size": {"type": "int", "low": 1, "high": 8}}
    study = Study(make_experiment(tmp_path, space=space, trials=10, sampler="random"), tmp_path).run(trials_first)
    tried = [study.suggest(n)["params"]["training.batch_size"] for n in range(10)]
    assert sorted(tried[:6]) == sorted(set(tried[:6]))
    assert set(tried) <= set(range(1, 9))


def test_tpe_finds_what_random_search_does_not(tmp_path: Path) -> None:
    values = {}
    for sampler in ("tpe", "random"):
        folder = tmp_path / sampler
        tpe = make_experiment(folder, sampler=sampler, trials=30, min_trials=5)
        values[sampler] = Study(tpe, folder).run(trials_last).best()["value"]
    assert values["tpe"] > values["random"]


def test_a_trials_run_is_the_experiment_with_its_parameters_and_settings(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path, set={"training.epochs": 2})
    suggestion = Study(experiment, tmp_path).suggest(0)
    output = tuning.suggestion_path(tmp_path / "tune", 0)
    run, digest = plan.load_run(str(output), tmp_path / "work")
    assert digest == suggestion["run"]["digest"]
    assert run.training.epochs == 2
    assert run.optimizer.lr == suggestion["params"]["optimizer.lr"]
    assert run == plan.apply(experiment, {"training.epochs": 2, **suggestion["params"]})


def test_the_best_trial_is_the_run_itself_when_trials_have_no_settings_of_their_own(tmp_path: Path) -> None:
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


def test_only_a_trial_trained_in_full_is_best(tmp_path: Path) -> None:
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


def test_a_trial_without_a_single_number_failed(tmp_path: Path) -> None:
    suggestion = Study(make_experiment(tmp_path), tmp_path).suggest(0)
    rows = [{"epoch": 1, "step": 10, "val_accuracy": float("nan"), "val_loss": float("nan")}]
    result = tuning.write_result(suggestion, rows, tmp_path / "result.json")
    assert result["state"] == "failed"
    assert result["curve"] == [{"epoch": 1, "value": None}]
    assert tuning.load_result(tmp_path / "result.json") == result


def test_the_value_is_that_of_the_epoch_that_the_run_keeps(tmp_path: Path) -> None:
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


def test_pruning_ends_some_trials_and_none_of_the_first(finished: Study) -> None:
    results = [tuning.load_result(tuning.result_path(finished.tune_dir, n)) for n in range(12)]
    states = [result["state"] for result in results]
    assert "pruned" in states
    assert "complete" in states
    assert states[:4] == ["complete"] * 4, "two complete results are known from suggestion 4 on"
    assert all(1 < len(result["curve"]) < EPOCHS for result in results if result["state"] == "pruned")


def test_a_run_trained_further_by_another_gives_the_same_result(finished: Study) -> None:
    for n in range(12):
        suggestion = tuning.load_suggestion(tuning.suggestion_path(finished.tune_dir, n))
        further = tuning.result(suggestion, curve(suggestion["params"]))
        assert further == tuning.load_result(tuning.result_path(finished.tune_dir, n))


def test_only_complete_trials_make_the_median(pruned_with: Callable[..., config.Experiment]) -> None:
    tune = pruned_with(1, 1, "val_accuracy").tune
    assert tune is not None
    complete, others = finished_result([0.5, 0.75, 0.875]), [finished_result([0.0] * 3) for _ in range(2)]
    results = [complete, {**others[0], "state": "pruned"}, {**others[1], "state": "failed"}]
    assert tuning.thresholds(tune, results, EPOCHS) == [None, 0.75, 0.875, None, None]


GRID = st.integers(0, 16).map(lambda n: n / 16)  # medians of these are exact
CURVES = st.lists(st.lists(GRID, min_size=1, max_size=EPOCHS), min_size=0, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    curves=CURVES,
    own=st.lists(GRID, min_size=EPOCHS, max_size=EPOCHS),
    warmup=st.integers(0, 3),
    enough=st.integers(1, 4),
    metric=st.sampled_from(["val_accuracy", "val_loss"]),
)
def test_pruning_is_optunas_median_rule(
    pruned_with: Callable[..., config.Experiment],
    curves: list[list[float]],
    own: list[float],
    warmup: int,
    enough: int,
    metric: str,
) -> None:
    tune = pruned_with(warmup, enough, metric).tune
    assert tune is not None
    results = [finished_result(values) for values in curves]
    suggestion: Any = {"metric": metric, "thresholds": tuning.thresholds(tune, results, EPOCHS)}
    stop_early = tuning.pruner(suggestion)
    history = [{"epoch": epoch, metric: value} for epoch, value in enumerate(own, start=1)]
    ours = next((n for n in range(1, EPOCHS + 1) if stop_early(history[:n])), None)
    assert ours == optunas_median_rule(curves, own, warmup, enough, metric)
    assert all(stop_early(history[:n]) for n in range(ours or EPOCHS, EPOCHS)), "what is pruned stays pruned"


@pytest.fixture(scope="module")
def pruned_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., config.Experiment]:
    made = {
        key: make_experiment(
            tmp_path_factory.mktemp("pruned"),
            pruner="median",
            warmup_epochs=key[0],
            min_trials=key[1],
            metric=key[2],
        )
        for key in itertools.product(range(4), range(1, 5), ("val_accuracy", "val_loss"))
    }
    return lambda *key: made[key]


def finished_result(values: list[float]) -> Any:
    return {"state": "complete", "curve": [{"epoch": i, "value": x} for i, x in enumerate(values, start=1)]}


def optunas_median_rule(
    curves: list[list[float]], own: list[float], warmup: int, enough: int, metric: str
) -> int | None:
    """How many validations optuna.pruners.MedianPruner gives the trial, if it prunes it before the last."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=0, n_warmup_steps=warmup + 1, n_min_trials=enough)
    study = optuna.create_study(direction="minimize" if metric == "val_loss" else "maximize", pruner=pruner)
    for values in curves:
        steps = dict(enumerate(values, start=1))
        study.add_trial(optuna.trial.create_trial(value=values[-1], intermediate_values=steps))
    trial = study.ask()
    for epoch, value in enumerate(own[:-1], start=1):
        trial.report(value, epoch)
        if trial.should_prune():
            return epoch
    return None


REAL = """
import sys
from pathlib import Path
from workflow_lib import config, plan, data as shards, tuning
from workflow_lib.errors import Stopped

experiment, work = config.load([Path("experiment.json")]), Path("work")
shards.preprocess(experiment, plan.data_id(experiment), work, Path("data.json"))
tuning.suggest(experiment, 0, Path("tune"), work, Path("tune/suggest-0000.json"))

def trial(deadline_minutes=None):
    output = Path("tune/trial-0000.json")
    return tuning.trial(experiment, Path("tune/suggest-0000.json"), data=Path("data.json"), work=work,
                        output=output, deadline_minutes=deadline_minutes)
"""


def run_real(folder: Path, program: str, low: float, high: float) -> str:
    """What the program printed, after the first trial of a study of the learning rate was suggested."""
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


def test_a_trial_that_was_stopped_is_not_a_result(tmp_path: Path) -> None:
    """A few seconds: a real training, stopped by its deadline and then gone on with."""
    program = """
try:
    trial(deadline_minutes=1e-9)
except Stopped:
    print("stopped", Path("tune/trial-0000.json").exists())
print(trial()["state"])
"""
    assert run_real(tmp_path, program, 1e-3, 2e-3).splitlines() == ["stopped False", "complete"]


def test_a_study_for_the_report_has_every_trial_in_order(finished: Study) -> None:
    study = tuning.load_study(finished.experiment, finished.tune_dir)
    results = [tuning.load_result(tuning.result_path(finished.tune_dir, n)) for n in range(12)]
    assert [trial.params for trial in study.trials] == [result["params"] for result in results]
    assert [trial.state.name.lower() for trial in study.trials] == [result["state"] for result in results]
    assert study.best_trial.number == finished.best()["number"]


@pytest.mark.filterwarnings("default")
def test_importances_sum_to_one(finished: Study) -> None:
    importances = tuning.importances(tuning.load_study(finished.experiment, finished.tune_dir))
    assert set(importances) == set(SPACE)
    assert sum(importances.values()) == pytest.approx(1)


def test_a_study_without_trials_has_no_importances(tmp_path: Path) -> None:
    assert tuning.importances(tuning.load_study(make_experiment(tmp_path), tmp_path)) == {}


def test_the_study_in_the_documentation_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "tuning.md").read_text()
    path = tmp_path / "documented.yaml"
    path.write_text("name: documented\n" + text.partition("```yaml\n")[2].partition("```")[0])
    experiment = config.load([path])
    assert experiment.tune is not None
    assert experiment.tune.set == {"training.epochs": 8}


def test_an_experiment_without_a_study_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.yaml"
    path.write_text("name: plain\n")
    with pytest.raises(ConfigError, match="write a `tune:` section"):
        tuning.suggest(config.load([path]), 0, tmp_path, tmp_path, tmp_path / "out.json")


def test_a_suggestion_imports_nothing_heavy(finished: Study, tmp_path: Path) -> None:
    snapshot = plan.freeze_experiment(finished.experiment, tmp_path)
    program = (
        "import sys; from workflow_lib.__main__ import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'torch', 'pandas', 'sklearn', 'scipy', 'plotly'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, "suggest", "--experiment", str(snapshot), "--number", "8"]
    command += ["--tune-dir", str(finished.tune_dir), "--output", str(tmp_path / "out.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0 []\n", "")
