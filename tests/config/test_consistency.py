"""Settings that contradict each other are refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workflow_lib import config, plan, plugins
from workflow_lib.data.splits import assign
from workflow_lib.datasets import digits
from workflow_lib.errors import ConfigError


def refusal(path: Path, **sections: Any) -> list[str]:
    """What `validate` says of an experiment with these sections."""
    file = path / "x.yaml"
    file.write_text(json.dumps({"name": "a", **sections}, indent=1))
    with pytest.raises(ConfigError) as refused:
        plan.expand(config.load([file]))
    return [line.partition("x.yaml:")[2] or line for line in str(refused.value).splitlines()]


def accepted(path: Path, **sections: Any) -> int:
    """The number of runs of an experiment with these sections."""
    file = path / "x.yaml"
    file.write_text(json.dumps({"name": "a", **sections}))
    return len(plan.expand(config.load([file])))


SPACE = {"optimizer.lr": {"type": "float", "low": 1e-4, "high": 1e-2}}


# One run


def test_a_warm_up_longer_than_the_training_is_refused(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, schedule={"warmup_epochs": 2.5}, training={"epochs": 2})
    assert "schedule.warmup_epochs: the warm-up (2.5 epochs) is longer than the training (training.epochs=2)" in line
    assert accepted(tmp_path, schedule={"warmup_epochs": 2}, training={"epochs": 2}) == 1


def test_splits_that_leave_nothing_to_train_on_are_refused(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, data={"validation_fraction": 0.5, "test_fraction": 0.5})
    assert "data.validation_fraction: 0.5 and data.test_fraction=0.5 leave nothing to train on" in line


def test_a_batch_that_leaves_a_rank_without_samples_is_refused(tmp_path: Path) -> None:
    runtime = {"nproc": 2, "nodes": 2}
    (line,) = refusal(tmp_path, runtime=runtime, training={"batch_size": 7, "accumulation_steps": 2})
    assert "training.batch_size: 7 samples are too few for 4 ranks" in line
    assert line.endswith("allowed: at least 8")
    assert accepted(tmp_path, runtime=runtime, training={"batch_size": 8, "accumulation_steps": 2}) == 1


@pytest.mark.parametrize(
    ("device", "precision", "works"),
    [
        ("cpu", "bf16", True),
        ("cpu", "fp16", False),
        ("cpu", "tf32", False),
        ("cuda", "tf32", True),
        ("cuda:1", "fp16", True),
        ("auto", "tf32", True),
    ],
)
def test_a_precision_must_be_one_of_the_named_device(tmp_path: Path, device: str, precision: str, works: bool) -> None:
    sections = {"runtime": {"device": device}, "training": {"precision": precision}}
    if works:
        assert accepted(tmp_path, **sections) == 1
    else:
        (line,) = refusal(tmp_path, **sections)
        assert (
            f"training.precision: {precision} cannot be computed on runtime.device={device}; allowed there: fp32"
            in line
        )


def test_one_device_is_not_for_several_processes(tmp_path: Path) -> None:
    device = "cuda:0"
    (line,) = refusal(tmp_path, runtime={"device": device, "nproc": 2})
    assert f"runtime.device: {device} is for one process, and runtime.nproc is 2; allowed: auto, cpu, cuda" in line
    assert accepted(tmp_path, runtime={"device": device, "nodes": 2}) == 1


# What is known of the data before it is read

FITTING = {
    "digits": ["cnn", "mlp", "resnet"],
    "image_folder": ["cnn", "mlp", "resnet"],
    "npz": ["cnn", "mlp", "resnet"],
    "table": ["mlp", "tabular"],
    "text": ["transformer"],
}
NEEDED = {"digits": {}, "text": {}, "table": {"path": "x.csv", "target": "y"}}


def test_every_data_set_of_the_package_is_in_the_table() -> None:
    assert sorted(FITTING) == plugins.available("data")


@pytest.mark.parametrize("model", plugins.available("models"))
@pytest.mark.parametrize("name", FITTING)
def test_a_model_is_for_what_the_data_has(tmp_path: Path, name: str, model: str) -> None:
    sections = {"data": {"name": name, "params": NEEDED.get(name, {"path": "x"})}, "model": {"name": model}}
    if model in FITTING[name]:
        assert accepted(tmp_path, **sections) == 1
    else:
        (line,) = refusal(tmp_path, **sections)
        assert f"model.name: {model} is for " in line
        assert f"and data.name={name} has " in line
        assert line.endswith(f"allowed: {', '.join(FITTING[name])}")


def test_a_point_of_a_sweep_and_a_choice_of_a_study_have_a_model_for_the_data(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, sweep={"grid": {"model.name": ["cnn", "tabular"]}})
    assert "sweep point 1 (model.name='tabular'): model.name: tabular is for tables" in line
    choice = {"type": "categorical", "choices": ["cnn", "transformer"]}
    (line,) = refusal(tmp_path, tune={"space": {"model.name": choice}})
    assert "tune.space.model.name: transformer is for texts" in line


def test_rows_of_a_table_are_not_augmented(tmp_path: Path) -> None:
    data = {"name": "table", "params": NEEDED["table"]}
    (line,) = refusal(tmp_path, data=data, augment={"noise": 0.5})
    assert "augment.noise: 0.5 is for images, and the data has tables; allowed: 0" in line


@pytest.mark.parametrize(
    ("data", "most"),
    [
        ({"name": "digits"}, 7),
        ({"name": "image_folder", "params": {"path": "x", "size": [48, 64]}}, 47),
        ({"name": "image_folder", "params": {"path": "x"}}, None),
    ],
)
def test_a_crop_leaves_a_part_of_the_image(tmp_path: Path, data: dict[str, Any], most: int | None) -> None:
    assert accepted(tmp_path, data=data, augment={"crop": 7 if most is None else most}) == 1
    if most is None:
        assert accepted(tmp_path, data=data, augment={"crop": 5000}) == 1
    else:
        (line,) = refusal(tmp_path, data=data, augment={"crop": most + 1})
        assert f"augment.crop: {most + 1} pixels can move an image" in line
        assert line.endswith(f"out of sight; allowed: at most {most}")


def test_each_class_has_a_weight(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, training={"class_weights": [1] * 9})
    assert line.endswith("training.class_weights: 9 weights; the data has 10 classes, and each needs one")
    assert accepted(tmp_path, training={"class_weights": [1] * 10}) == 1
    named = {"name": "npz", "params": {"path": "x", "classes": ["a", "b"]}}
    (line,) = refusal(tmp_path, data=named, training={"class_weights": [1, 1, 1]})
    assert "3 weights; the data has 2 classes" in line
    unnamed = {"name": "npz", "params": {"path": "x"}}
    assert accepted(tmp_path, data=unnamed, training={"class_weights": [1, 1, 1]}) == 1


@pytest.mark.parametrize(("validation", "test"), [(0.15, 0.2), (0.1234, 0.3217), (0.4999, 0.4)])
def test_a_batch_is_no_larger_than_the_training_split(tmp_path: Path, validation: float, test: float) -> None:
    data = {"validation_fraction": validation, "test_fraction": test}
    samples = len(assign(digits.open_source(digits.Params(), tmp_path), config.Data(**data))["train"].rows)
    assert accepted(tmp_path, data=data, training={"batch_size": samples}) == 1
    (line,) = refusal(tmp_path, data=data, training={"batch_size": samples + 1})
    assert f"training.batch_size: {samples + 1} samples are more than the training split has" in line
    assert line.endswith(f"allowed: at most {samples}")


# Sweeps


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("optimizer.lrr", "did you mean `optimizer.lr`?"),
        ("optimzer.lr", "did you mean `optimizer`?"),
        ("optimizer.lr.x", "no such setting; there are no settings here"),
        ("runtime.threads", "runtime cannot change the result"),
        ("checkpoint.keep_last", "checkpoint cannot change the result"),
        ("data.shard_samples", "data.shard_samples cannot change the result"),
        ("name", "name cannot change the result"),
        ("sweep.grid", "sweep cannot change the result"),
    ],
)
@pytest.mark.parametrize("axis", ["grid", "list", "tune"])
def test_only_settings_that_change_the_result_are_varied(tmp_path: Path, name: str, said: str, axis: str) -> None:
    space = {"type": "int", "low": 1, "high": 2}
    sections = {
        "grid": {"sweep": {"grid": {name: [1, 2]}}},
        "list": {"sweep": {"list": [{name: 1}]}},
        "tune": {"tune": {"space": {name: space}}},
    }
    (line,) = refusal(tmp_path, **sections[axis])
    assert f".{name}: " in line
    assert said in line


def test_lists_side_by_side_have_one_length(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, sweep={"zip": {"seed": [1, 2, 3], "training.epochs": [1, 2]}})
    assert "sweep.zip: " in line
    assert "seed has 3, training.epochs has 2" in line


def test_a_setting_is_swept_in_one_place(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, sweep={"grid": {"seed": [1, 2]}, "list": [{"seed": 3}]})
    assert "sweep.list[0].seed: seed is in sweep.grid too" in line


def test_an_exclude_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, sweep={"grid": {"optimizer.lr": [1e-3]}, "exclude": [{"optimizer.lr": 3e-3}]})
    assert "sweep.exclude[0]: {'optimizer.lr': 0.003} is no point of the sweep" in line


def test_an_exclude_of_what_is_not_swept_is_refused(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, sweep={"grid": {"optimizer.lr": [1e-3]}, "exclude": [{"optimzer.lr": 1e-3}]})
    assert "sweep.exclude[0]: optimzer.lr is not swept; did you mean `optimizer.lr`?" in line
    assert "no sweep to leave points out of" in refusal(tmp_path, sweep={"exclude": [{"seed": 1}]})[0]


def test_an_exclude_of_everything_is_refused(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, sweep={"grid": {"seed": [1]}, "exclude": [{"seed": 1}]})
    assert "nothing is left of the sweep" in line


def test_a_sweep_of_millions_is_refused_at_once(tmp_path: Path) -> None:
    numbers = list(range(1, 400))
    (line,) = refusal(tmp_path, sweep={"grid": {"seed": numbers, "training.epochs": numbers}})
    assert "159,201 points; at most 100,000" in line


def test_a_whole_section_is_swept_by_a_mapping(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, sweep={"grid": {"optimizer": ["sgd"]}})
    assert "sweep.grid.optimizer: 'sgd' is not allowed; a mapping of settings" in line


def test_a_bad_point_is_named_with_its_values_and_all_bad_points_are_told(tmp_path: Path) -> None:
    sweep = {"list": [{"model.name": "cnn", "model.params.chanels": [1]}], "grid": {"optimizer.lr": [1e-3, 0]}}
    lines = refusal(tmp_path, sweep=sweep)
    assert len(lines) == 2
    assert (
        "sweep point 0 (model.name='cnn', model.params.chanels=[1], optimizer.lr=0.001): model.params.chanels"
        in lines[0]
    )
    assert "did you mean `channels`" in lines[0]
    assert "sweep point 1 (" in lines[1]
    assert "optimizer.lr: 0 is not allowed; allowed: a number, above 0" in lines[1]


def test_each_point_is_checked_as_a_whole(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, schedule={"warmup_epochs": 5}, sweep={"grid": {"training.epochs": [4, 5, 6]}})
    assert "sweep point 0 (training.epochs=4): schedule.warmup_epochs: the warm-up" in line


def test_what_the_sweep_replaces_need_not_fit(tmp_path: Path) -> None:
    assert accepted(tmp_path, schedule={"warmup_epochs": 20}, sweep={"grid": {"training.epochs": [20, 30]}}) == 2


# Studies


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"type": "float", "low": 2, "high": 1}, "low=2 is not below high=1"),
        ({"type": "int", "low": 1, "high": 1}, "low=1 is not below high=1"),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "needs low above 0"),
        ({"type": "float", "low": 1, "high": 2, "log": True, "step": 0.1}, "log and step exclude each other"),
        ({"type": "int", "low": 1, "high": 8, "step": 2}, "write high: 7"),
        ({"type": "float", "low": 0.1, "high": 1, "step": 0.4}, "write high: 0.9"),
        ({"type": "categorical", "choices": [0.1, 0.2, 0.1]}, "a choice is written twice"),
        ({"type": "float", "low": -1, "high": 1}, "optimizer.lr: -1.0 is not allowed; allowed: a number, above 0"),
        ({"type": "categorical", "choices": [0.1, "big"]}, "optimizer.lr: 'big' is not allowed"),
    ],
)
def test_a_range_that_cannot_be_drawn_from_is_refused(tmp_path: Path, space: dict[str, Any], said: str) -> None:
    (line,) = refusal(tmp_path, tune={"space": {"optimizer.lr": space}})
    assert "tune.space.optimizer.lr" in line
    assert said in line


def test_a_range_of_fractions_does_not_fit_a_whole_number(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, tune={"space": {"training.epochs": {"type": "float", "low": 1, "high": 4}}})
    assert "tune.space.training.epochs: training.epochs: 2.146 is not allowed; allowed: a whole number" in line


@pytest.mark.parametrize("swept", ["optimizer.lr", "optimizer"])
def test_what_is_tuned_is_not_swept_as_well(tmp_path: Path, swept: str) -> None:
    value = 1e-3 if swept == "optimizer.lr" else {"lr": 1e-3}
    (line,) = refusal(tmp_path, sweep={"grid": {swept: [value]}}, tune={"space": SPACE})
    assert f"tune.space.optimizer.lr: {swept} is swept too" in line


def test_what_is_tuned_is_not_set_as_well(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, tune={"space": SPACE, "set": {"optimizer.lr": 1}})
    assert "optimizer.lr is in tune.set too" in line


@pytest.mark.parametrize("where", ["space", "set"])
def test_a_study_does_not_change_the_data(tmp_path: Path, where: str) -> None:
    tune: dict[str, Any] = {"space": dict(SPACE), "set": {}}
    tune[where]["data.split_seed"] = {"type": "int", "low": 0, "high": 3} if where == "space" else 3
    (line,) = refusal(tmp_path, tune=tune)
    assert f"tune.{where}.data.split_seed: a study does not change the data" in line
    assert "sweep" in line


def test_every_choice_of_a_study_must_train(tmp_path: Path) -> None:
    tune = {"space": {"optimizer.name": {"type": "categorical", "choices": ["adamw", "sgd", "adagrad"]}}}
    (line,) = refusal(tmp_path, tune=tune)
    assert "no optimizer 'adagrad'" in line
    tune["space"] |= {"model.params.depth": {"type": "int", "low": 1, "high": 3}}
    assert any("model.params.depth: no such setting" in line for line in refusal(tmp_path, tune=tune))


def test_a_study_is_checked_at_its_ends(tmp_path: Path) -> None:
    space = {"training.batch_size": {"type": "int", "low": 1, "high": 64}}
    (line,) = refusal(tmp_path, runtime={"nproc": 2}, tune={"space": space | SPACE})
    assert "tune.space.training.batch_size: 1 samples are too few for 2 ranks" in line


def test_the_trials_own_settings_are_checked_too(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, schedule={"warmup_epochs": 3}, tune={"space": SPACE, "set": {"training.epochs": 2}})
    assert "schedule.warmup_epochs: the warm-up (3 epochs) is longer" in line


def test_what_only_the_trials_could_train_is_refused_before_the_best_run_fails(tmp_path: Path) -> None:
    space = {"model.params.batch_norm": {"type": "categorical", "choices": [True, False]}}
    (line,) = refusal(tmp_path, tune={"space": space, "set": {"model.name": "cnn"}})
    assert "model.params.batch_norm: no such setting" in line
    assert accepted(tmp_path, model={"name": "cnn"}, tune={"space": space}) == 1


# Tasks


@pytest.fixture
def regression(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits are numbers, not classes."""
    monkeypatch.setattr(digits, "task", lambda params: "regression", raising=False)


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"training": {"select_metric": "val_accuracy"}}, "training.select_metric"),
        ({"training": {"early_stopping": {"metric": "val_accuracy"}}}, "training.early_stopping.metric"),
        ({"tune": {"space": SPACE, "metric": "val_accuracy"}}, "tune.metric"),
    ],
)
def test_a_metric_that_the_task_does_not_measure_is_refused(
    tmp_path: Path, regression: None, sections: dict[str, Any], where: str
) -> None:
    (line,) = refusal(tmp_path, **sections)
    assert f"{where}: val_accuracy is not measured in regression; allowed: train_loss, val_loss, val_mae" in line


def test_a_study_improves_what_is_usual_for_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps({"name": "a", "tune": {"space": SPACE}}))
    assert plan.study_metric(config.load([file])) == "val_accuracy"
    request.getfixturevalue("regression")
    assert plan.study_metric(config.load([file])) == "val_loss"


@pytest.mark.parametrize(
    ("name", "value", "default"),
    [
        ("label_smoothing", 0.1, "0.0"),
        ("focal_gamma", 2.0, "0.0"),
        ("class_weights", "balanced", "null"),
        ("sampling", "balanced", "'shuffled'"),
    ],
)
def test_a_loss_of_classes_is_refused_where_there_are_none(
    tmp_path: Path, regression: None, name: str, value: Any, default: str
) -> None:
    (line,) = refusal(tmp_path, training={name: value})
    assert f"training.{name}: {value!r} has no meaning in regression, only in classification" in line
    assert line.endswith(f"allowed: {default}")


def test_classes_are_not_evened_out_twice(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, training={"sampling": "balanced", "class_weights": "balanced"})
    assert "training.class_weights: balanced, and training.sampling is balanced, too" in line


def test_texts_are_not_augmented(tmp_path: Path) -> None:
    text = {"data": {"name": "text"}, "model": {"name": "transformer"}}
    (line,) = refusal(tmp_path, **text, augment={"flip_horizontal": 0, "mixup": 0.2})
    assert "augment.mixup: 0.2 is for images, and the data has texts; allowed: 0" in line


def test_a_model_is_cut_only_for_an_optimizer_that_can(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, training={"parallel": "fsdp"}, optimizer={"name": "muon"})
    assert "training.parallel: fsdp" in line
    assert line.endswith("allowed with muon: ddp")


def test_what_the_compiler_cannot_follow_is_refused(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, training={"compile": True, "activation_checkpointing": True})
    assert "training.activation_checkpointing: true, and training.compile is true, too" in line
    (line,) = refusal(tmp_path, training={"compile": True, "parallel": "fsdp"})
    assert "training.compile: true cannot be combined with training.parallel=fsdp" in line
