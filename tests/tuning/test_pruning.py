from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.study import EPOCHS, Study, curve, make_experiment
from workflow_lib import config, tuning
from workflow_lib.config.run import Training

TRAINING = Training(epochs=EPOCHS)


def test_pruning_ends_some_trials_but_none_of_the_first(finished: Study) -> None:
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


def test_only_complete_trials_count_for_the_median(pruned_with: Callable[..., config.Experiment]) -> None:
    tune = pruned_with(1, 1, "val_accuracy").tune
    assert tune is not None
    complete, others = finished_result([0.5, 0.75, 0.875]), [finished_result([0.0] * 3) for _ in range(2)]
    results = [complete, {**others[0], "state": "pruned"}, {**others[1], "state": "failed"}]
    assert tuning.thresholds(tune, results, TRAINING) == [None, 0.75, 0.875, None, None]


def test_a_metric_of_the_user_is_pruned_by_its_own_direction() -> None:
    history = [{"epoch": epoch, "val_streak": value} for epoch, value in ((1, 3.0), (2, 8.0))]
    suggestion: Any = {"metric": "val_streak", "thresholds": [5.0, 5.0, 5.0]}
    assert tuning.pruner(suggestion | {"maximized": ["val_streak"]})(history[:1])
    assert not tuning.pruner(suggestion | {"maximized": ["val_streak"], "thresholds": [None, 5.0]})(history)
    assert not tuning.pruner(suggestion)(history[:1])
    assert tuning.pruner(suggestion | {"thresholds": [None, 2.0]})(history)


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
    suggestion: Any = {"metric": metric, "thresholds": tuning.thresholds(tune, results, TRAINING)}
    stop_early = tuning.pruner(suggestion)
    history = [{"epoch": epoch, metric: value} for epoch, value in enumerate(own, start=1)]
    ours = next((n for n in range(1, EPOCHS + 1) if stop_early(history[:n])), None)
    assert ours == optunas_median_rule(curves, own, warmup, enough, metric)
    assert all(stop_early(history[:n]) for n in range(ours or EPOCHS, EPOCHS)), "a pruned trial stays pruned"


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
    """Return after how many validations optuna.pruners.MedianPruner prunes the trial, or None if it does not."""
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
