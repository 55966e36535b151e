"""Settings of a run that contradict each other, or do not fit the data or its task, are rejected."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.config.conftest import SPACE, plan_problems, run_count
from workflow_lib import config, plan, plugins
from workflow_lib.data.splits import assign
from workflow_lib.datasets import digits


def test_a_warm_up_longer_than_the_training_is_rejected(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, schedule={"warmup_epochs": 2.5}, training={"epochs": 2})
    assert "schedule.warmup_epochs: the warm-up (2.5 epochs) is longer than the training (training.epochs=2)" in line
    assert run_count(tmp_path, schedule={"warmup_epochs": 2}, training={"epochs": 2}) == 1


def test_splits_that_leave_no_training_split_are_rejected(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, data={"validation_fraction": 0.5, "test_fraction": 0.5})
    assert "data.validation_fraction: 0.5 and data.test_fraction=0.5 leave no training split" in line


def test_a_batch_that_leaves_a_rank_without_samples_is_rejected(tmp_path: Path) -> None:
    runtime = {"nproc": 2, "nodes": 2}
    (line,) = plan_problems(tmp_path, runtime=runtime, training={"batch_size": 7, "accumulation_steps": 2})
    assert "training.batch_size: 7 samples are too few for 4 ranks" in line
    assert line.endswith("allowed: at least 8")
    assert run_count(tmp_path, runtime=runtime, training={"batch_size": 8, "accumulation_steps": 2}) == 1


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
def test_the_device_must_support_the_precision(tmp_path: Path, device: str, precision: str, works: bool) -> None:
    sections = {"runtime": {"device": device}, "training": {"precision": precision}}
    if works:
        assert run_count(tmp_path, **sections) == 1
    else:
        (line,) = plan_problems(tmp_path, **sections)
        assert (
            f"training.precision: {precision} cannot be computed on runtime.device={device}; allowed there: fp32"
            in line
        )


def test_a_numbered_device_is_rejected_for_several_processes(tmp_path: Path) -> None:
    device = "cuda:0"
    (line,) = plan_problems(tmp_path, runtime={"device": device, "nproc": 2})
    assert f"runtime.device: {device} is for one process, and runtime.nproc is 2; allowed: auto, cpu, cuda" in line
    assert run_count(tmp_path, runtime={"device": device, "nodes": 2}) == 1


MASKED = [name for name in plugins.available("models") if "pixel" in getattr(plugins.load("models", name), "GIVES", ())]
FITTING = {
    "arrow": ["cnn", "mlp", "resnet", "transformers"],
    "digits": ["cnn", "mlp", "resnet", "transformers"],
    "image_folder": ["cnn", "mlp", "resnet", "transformers"],
    "image_masks": MASKED,
    "image_table": ["cnn", "mlp", "resnet", "transformers"],
    "labelled_text": ["text_encoder", "transformers"],
    "npz": ["cnn", "mlp", "resnet", "transformers"],
    "scenes": MASKED,
    "table": ["mlp", "tabular"],
    "tar": ["cnn", "mlp", "resnet", "transformers"],
    "text": ["transformer", "transformers"],
    "tokens": ["transformer", "transformers"],
}
NEEDED = {
    "arrow": {"path": "x", "image": "picture", "target": "y"},
    "digits": {},
    "image_masks": {"path": "x", "masks": "y", "classes": ["a", "b"]},
    "image_table": {"path": "x", "table": "x.csv", "target": "y"},
    "scenes": {},
    "text": {},
    "tokens": {"path": "x", "vocabulary": 9},
    "table": {"path": "x.csv", "target": "y"},
}


def test_the_table_has_every_data_set_of_the_package() -> None:
    assert sorted(FITTING) == plugins.available("data")


@pytest.mark.parametrize("model", plugins.available("models"))
@pytest.mark.parametrize("name", FITTING)
def test_the_model_must_accept_the_inputs_of_the_data(tmp_path: Path, name: str, model: str) -> None:
    sections = {"data": {"name": name, "params": NEEDED.get(name, {"path": "x"})}, "model": {"name": model}}
    if model == "transformers":
        pytest.importorskip("transformers")  # an extra, which scripts/oldest does not install
        sections["model"]["params"] = {"path": "x"}
    if model in FITTING[name]:
        assert run_count(tmp_path, **sections) == 1
    else:
        (line,) = plan_problems(tmp_path, **sections)
        assert re.search(f"model.name: {model} (is for |gives an answer for )", line)
        assert re.search(f"and data.name={name} (has |needs one )", line)
        assert line.endswith(f"allowed: {', '.join(FITTING[name])}")


def test_the_models_of_sweep_points_and_trials_must_accept_the_data(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, sweep={"grid": {"model.name": ["cnn", "tabular"]}})
    assert "sweep point 1 (model.name='tabular'): model.name: tabular is for tables" in line
    choice = {"type": "categorical", "choices": ["cnn", "transformer"]}
    (line,) = plan_problems(tmp_path, tune={"space": {"model.name": choice}})
    assert "tune.space.model.name: transformer is for texts" in line


def test_augmentation_of_tables_is_rejected(tmp_path: Path) -> None:
    data = {"name": "table", "params": NEEDED["table"]}
    (line,) = plan_problems(tmp_path, data=data, augment={"noise": 0.5})
    assert "augment.noise: 0.5 is for images, and the data has tables; allowed: 0" in line


@pytest.mark.parametrize(
    ("data", "most"),
    [
        ({"name": "digits"}, 7),
        ({"name": "image_folder", "params": {"path": "x", "size": [48, 64]}}, 47),
        ({"name": "image_folder", "params": {"path": "x"}}, None),
    ],
)
def test_a_crop_must_leave_part_of_the_image(tmp_path: Path, data: dict[str, Any], most: int | None) -> None:
    assert run_count(tmp_path, data=data, augment={"crop": 7 if most is None else most}) == 1
    if most is None:
        assert run_count(tmp_path, data=data, augment={"crop": 5000}) == 1
    else:
        (line,) = plan_problems(tmp_path, data=data, augment={"crop": most + 1})
        assert f"augment.crop: {most + 1} pixels can crop an image" in line
        assert line.endswith(f"to padding alone; allowed: at most {most}")


def test_each_class_needs_a_weight(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, training={"class_weights": [1] * 9})
    assert line.endswith("training.class_weights: 9 weights; the data has 10 classes, and each needs one")
    assert run_count(tmp_path, training={"class_weights": [1] * 10}) == 1
    named = {"name": "npz", "params": {"path": "x", "classes": ["a", "b"]}}
    (line,) = plan_problems(tmp_path, data=named, training={"class_weights": [1, 1, 1]})
    assert "3 weights; the data has 2 classes" in line
    unnamed = {"name": "npz", "params": {"path": "x"}}
    assert run_count(tmp_path, data=unnamed, training={"class_weights": [1, 1, 1]}) == 1


@pytest.mark.parametrize(("validation", "test"), [(0.15, 0.2), (0.1234, 0.3217), (0.4999, 0.4)])
def test_a_batch_larger_than_the_training_split_is_rejected(tmp_path: Path, validation: float, test: float) -> None:
    data = {"validation_fraction": validation, "test_fraction": test}
    samples = len(assign(digits.open_source(digits.Params(), tmp_path), config.Data(**data))["train"].rows)
    assert run_count(tmp_path, data=data, training={"batch_size": samples}) == 1
    (line,) = plan_problems(tmp_path, data=data, training={"batch_size": samples + 1})
    assert f"training.batch_size: {samples + 1} samples are more than the training split has" in line
    assert line.endswith(f"allowed: at most {samples}")


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
def test_a_metric_that_the_task_does_not_measure_is_rejected(
    tmp_path: Path, regression: None, sections: dict[str, Any], where: str
) -> None:
    (line,) = plan_problems(tmp_path, **sections)
    assert f"{where}: val_accuracy is not measured in regression; allowed: train_loss, val_loss, val_mae" in line


def test_the_default_metric_of_a_study_depends_on_the_task(
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
def test_settings_of_classification_are_rejected_for_regression(
    tmp_path: Path, regression: None, name: str, value: Any, default: str
) -> None:
    (line,) = plan_problems(tmp_path, training={name: value})
    assert f"training.{name}: {value!r} does not apply to regression, only to classification" in line
    assert line.endswith(f"allowed: {default}")


def test_balanced_sampling_and_balanced_weights_exclude_each_other(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, training={"sampling": "balanced", "class_weights": "balanced"})
    assert "training.class_weights: balanced cannot be combined with training.sampling=balanced" in line


def test_augmentation_of_texts_is_rejected(tmp_path: Path) -> None:
    text = {"data": {"name": "text"}, "model": {"name": "transformer"}}
    (line,) = plan_problems(tmp_path, **text, augment={"flip_horizontal": 0, "mixup": 0.2})
    assert "augment.mixup: 0.2 is for images, and the data has texts; allowed: 0" in line


def test_fsdp_is_rejected_for_muon(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, training={"parallel": "fsdp"}, optimizer={"name": "muon"})
    assert "training.parallel: fsdp" in line
    assert line.endswith("allowed with muon: ddp")


def test_what_the_compiler_does_not_support_is_rejected(tmp_path: Path) -> None:
    (line,) = plan_problems(tmp_path, training={"compile": True, "activation_checkpointing": True})
    assert "training.activation_checkpointing: true cannot be combined with training.compile=true" in line
    (line,) = plan_problems(tmp_path, training={"compile": True, "parallel": "fsdp"})
    assert "training.compile: true cannot be combined with training.parallel=fsdp" in line
