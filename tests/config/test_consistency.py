"""Sweeps and studies that cannot be run are rejected before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.config.conftest import SPACE, plan_problems, run_count


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("optimizer.lrr", "did you mean `optimizer.lr`?"),
        ("optimzer.lr", "did you mean `optimizer.lr`?"),
        ("optimizer.lr.x", "no such setting; there are no settings here"),
        ("runtime.threads", "runtime cannot change the result"),
        ("checkpoint.keep_last", "checkpoint cannot change the result"),
        ("data.shard_samples", "data.shard_samples cannot change the result"),
        ("name", "name cannot change the result"),
        ("sweep.grid", "sweep cannot change the result"),
    ],
)
@pytest.mark.parametrize("axis", ["grid", "list", "tune"])
def test_only_settings_that_change_the_result_can_be_varied(tmp_path: Path, name: str, said: str, axis: str) -> None:
    space = {"type": "int", "low": 1, "high": 2}
    sections = {
        "grid": {"sweep": {"grid": {name: [1, 2]}}},
        "list": {"sweep": {"list": [{name: 1}]}},
        "tune": {"tune": {"space": {name: space}}},
    }
    (line,) = plan_problems(tmp_path, **sections[axis])
    assert f".{name}: " in line
    assert said in line


def test_the_metric_of_a_promotion_is_one_of_the_test_split(tmp_path: Path) -> None:
    own = {"metrics": ["f1_weighted"]}
    for metric, training in (("log_loss", {}), ("f1_weighted", own)):
        assert run_count(tmp_path, registry={"name": "a", "metric": metric}, training=training) == 1
    for metric in ("mae", "val_accuracy", "own_loss"):
        (line,) = plan_problems(tmp_path, registry={"name": "a", "metric": metric}, training=own)
        assert f"registry.metric: {metric} is not measured on the test split in classification" in line
        assert "llowed: accuracy, macro_f1, roc_auc, log_loss, f1_weighted" in line


def test_the_lists_of_a_zip_must_have_the_same_length(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, sweep={"zip": {"seed": [1, 2, 3], "training.epochs": [1, 2]}})
    assert "sweep.zip: " in line
    assert "seed has 3, training.epochs has 2" in line


def test_a_setting_cannot_be_swept_twice(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, sweep={"grid": {"seed": [1, 2]}, "list": [{"seed": 3}]})
    assert "sweep.list[0].seed: seed is also in sweep.grid" in line


def test_an_exclude_that_matches_nothing_is_rejected(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, sweep={"grid": {"optimizer.lr": [1e-3]}, "exclude": [{"optimizer.lr": 3e-3}]})
    assert "sweep.exclude[0]: {'optimizer.lr': 0.003} matches no point of the sweep" in line


def test_an_exclude_of_a_setting_that_is_not_swept_is_rejected(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, sweep={"grid": {"optimizer.lr": [1e-3]}, "exclude": [{"optimzer.lr": 1e-3}]})
    assert "sweep.exclude[0]: optimzer.lr is not swept; did you mean `optimizer.lr`?" in line
    assert "no sweep to exclude points from" in plan_problems(tmp_path, sweep={"exclude": [{"seed": 1}]})[0]


def test_an_exclude_of_every_point_is_rejected(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, sweep={"grid": {"seed": [1]}, "exclude": [{"seed": 1}]})
    assert "no point of the sweep is left" in line


def test_a_huge_sweep_is_rejected_at_once(tmp_path: Path) -> None:
    numbers = list(range(1, 400))
    (line,) = plan_problems(tmp_path, sweep={"grid": {"seed": numbers, "training.epochs": numbers}})
    assert "159,201 points; at most 100,000" in line


def test_a_whole_section_can_only_be_swept_by_mappings(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, sweep={"grid": {"optimizer": ["sgd"]}})
    assert "sweep.grid.optimizer: 'sgd' is not allowed; a mapping of settings" in line


def test_every_bad_point_is_reported_with_its_values(tmp_path: Path) -> None:
    sweep = {"list": [{"model.name": "cnn", "model.params.chanels": [1]}], "grid": {"optimizer.lr": [1e-3, 0]}}
    lines = plan_problems(tmp_path, sweep=sweep)
    assert len(lines) == 2
    assert (
        "sweep point 0 (model.name='cnn', model.params.chanels=[1], optimizer.lr=0.001): model.params.chanels"
        in lines[0]
    )
    assert "did you mean `channels`" in lines[0]
    assert "sweep point 1 (" in lines[1]
    assert "optimizer.lr: 0 is not allowed; allowed: a number, above 0" in lines[1]


def test_a_mistake_of_several_points_is_one_line_and_one_of_all_settings_is_at_its_own_line(tmp_path: Path) -> None:
    base = {"training": {"metrics": ["r2"]}, "schedule": {"warmup_epochs": 5}}
    sweep = {"grid": {"training.epochs": [3, 4, 9]}, "seeds": 2}
    first, metric, second = plan_problems(tmp_path, **base, sweep=sweep)
    assert metric.startswith("5: training.metrics[0]: r2 is not for classification")
    assert [line.partition(": schedule")[0].partition("sweep ")[2] for line in (first, second)] == [
        "point 0 (training.epochs=3, seed=0) and 1 other point",
        "point 2 (training.epochs=4, seed=0) and 1 other point",
    ]


def test_each_point_is_checked_with_the_other_settings(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, schedule={"warmup_epochs": 5}, sweep={"grid": {"training.epochs": [4, 5, 6]}})
    assert "sweep point 0 (training.epochs=4): schedule.warmup_epochs: the warm-up" in line


def test_settings_that_the_sweep_replaces_are_not_checked(tmp_path: Path) -> None:
    assert run_count(tmp_path, schedule={"warmup_epochs": 20}, sweep={"grid": {"training.epochs": [20, 30]}}) == 2


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"type": "float", "low": 2, "high": 1}, "low=2 is not below high=1"),
        ({"type": "int", "low": 1, "high": 1}, "low=1 is not below high=1"),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "needs low above 0"),
        ({"type": "float", "low": 1, "high": 2, "log": True, "step": 0.1}, "log and step exclude each other"),
        ({"type": "int", "low": 1, "high": 8, "step": 2}, "write high: 7"),
        ({"type": "float", "low": 0.1, "high": 1, "step": 0.4}, "write high: 0.9"),
        ({"type": "categorical", "choices": [0.1, 0.2, 0.1]}, "a choice occurs twice"),
        ({"type": "float", "low": -1, "high": 1}, "optimizer.lr: -1.0 is not allowed; allowed: a number, above 0"),
        ({"type": "categorical", "choices": [0.1, "big"]}, "optimizer.lr: 'big' is not allowed"),
    ],
)
def test_an_impossible_range_is_rejected(tmp_path: Path, space: dict[str, Any], said: str) -> None:
    (line,) = plan_problems(tmp_path, tune={"space": {"optimizer.lr": space}})
    assert "tune.space.optimizer.lr" in line
    assert said in line


def test_a_float_range_for_a_whole_number_is_rejected(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, tune={"space": {"training.epochs": {"type": "float", "low": 1, "high": 4}}})
    assert "tune.space.training.epochs: training.epochs: 2.146 is not allowed; allowed: a whole number" in line


@pytest.mark.parametrize("swept", ["optimizer.lr", "optimizer"])
def test_a_setting_cannot_be_tuned_and_swept(tmp_path: Path, swept: str) -> None:
    value = 1e-3 if swept == "optimizer.lr" else {"lr": 1e-3}
    (line,) = plan_problems(tmp_path, sweep={"grid": {swept: [value]}}, tune={"space": SPACE})
    assert f"tune.space.optimizer.lr: {swept} is also swept" in line


def test_a_setting_cannot_be_tuned_and_set(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, tune={"space": SPACE, "set": {"optimizer.lr": 1}})
    assert "optimizer.lr is also in tune.set" in line


@pytest.mark.parametrize("where", ["space", "set"])
def test_a_study_cannot_vary_the_data(tmp_path: Path, where: str) -> None:
    tune: dict[str, Any] = {"space": dict(SPACE), "set": {}}
    tune[where]["data.split_seed"] = {"type": "int", "low": 0, "high": 3} if where == "space" else 3
    (line,) = plan_problems(tmp_path, tune=tune)
    assert f"tune.{where}.data.split_seed: a study cannot vary the data" in line
    assert "sweep" in line


def test_a_study_cannot_choose_the_seed(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, tune={"space": SPACE | {"seed": {"type": "int", "low": 0, "high": 9}}})
    assert "tune.space.seed: a study would pick the luckiest seed" in line


@pytest.mark.parametrize("name", ["data.fold", "data.folds"])
def test_a_study_cannot_choose_the_fold(tmp_path: Path, name: str) -> None:
    (line,) = plan_problems(tmp_path, tune={"space": SPACE | {name: {"type": "int", "low": 2, "high": 4}}})
    assert f"tune.space.{name}: a study cannot vary the data" in line


def test_every_choice_of_a_study_is_checked(tmp_path: Path) -> None:
    tune = {"space": {"optimizer.name": {"type": "categorical", "choices": ["adamw", "sgd", "adagrad"]}}}
    (line,) = plan_problems(tmp_path, tune=tune)
    assert "no optimizer 'adagrad'" in line
    tune["space"] |= {"model.params.depth": {"type": "int", "low": 1, "high": 3}}
    assert any("model.params.depth: no such setting" in line for line in plan_problems(tmp_path, tune=tune))


def test_a_study_is_checked_at_the_ends_of_its_ranges(tmp_path: Path) -> None:
    space = {"training.batch_size": {"type": "int", "low": 1, "high": 64}}
    (line,) = plan_problems(tmp_path, runtime={"nproc": 2}, tune={"space": space | SPACE})
    assert "tune.space.training.batch_size: 1 samples are too few for 2 ranks" in line


def test_the_settings_of_trials_only_are_checked(tmp_path: Path) -> None:
    (line,) = plan_problems(
        tmp_path, schedule={"warmup_epochs": 3}, tune={"space": SPACE, "set": {"training.epochs": 2}}
    )
    assert "schedule.warmup_epochs: the warm-up (3 epochs) is longer" in line


def test_the_final_run_is_checked_without_the_settings_of_trials(tmp_path: Path) -> None:
    space = {"model.params.batch_norm": {"type": "categorical", "choices": [True, False]}}
    (line,) = plan_problems(tmp_path, tune={"space": space, "set": {"model.name": "cnn"}})
    assert "model.params.batch_norm: no such setting" in line
    assert run_count(tmp_path, model={"name": "cnn"}, tune={"space": space}) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sweep": {"grid": {"seed": [1, 2]}, "seeds": 2}},
            "sweep.seeds: seed is also in sweep.grid; keep one of them",
        ),
        ({"sweep": {"list": [{"data.fold": 0}], "folds": 2}}, "sweep.folds: data.fold is also in sweep.list"),
        (
            {"sweep": {"seeds": 2}, "tune": {"space": {"optimizer.lr": {"type": "float", "low": 0.1, "high": 1}}}},
            "sweep.seeds: the trials of a study are not repeated",
        ),
        ({"sweep": {"folds": 1}}, "sweep.folds: 1 is not allowed; allowed: a whole number, at least 2"),
        ({"data": {"folds": 5}}, "data.fold: data.folds and data.fold belong together"),
        ({"data": {"folds": 5, "fold": 5}}, "data.fold: 5 is not below data.folds=5; folds are counted from 0"),
        ({"seed": 2**32 - 1, "sweep": {"seeds": 2}}, "seed: 4294967296 is not allowed"),
    ],
)
def test_seeds_and_folds_that_cannot_be_are_rejected(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    (line,) = plan_problems(tmp_path, **settings)
    assert message in line
