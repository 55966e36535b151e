"""The length of a training in epochs, in steps, or in both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workflow_lib import config, plan
from workflow_lib.config.compose import Source
from workflow_lib.config.length import Length
from workflow_lib.config.run import Training
from workflow_lib.config.yaml import Origins
from workflow_lib.errors import ConfigError


def load(**values: Any) -> Any:
    return config.loading.validate(Source({"name": "a", **values}, Origins({})), None)


@pytest.mark.parametrize(
    ("given", "total", "validated"),
    [
        ({"epochs": 3}, 21, [7, 14, 21]),
        ({"max_steps": 10}, 10, [7, 10]),
        ({"max_steps": 10, "validate_every_steps": 4}, 10, [4, 8, 10]),
        ({"max_steps": 10, "validate_every_steps": 100}, 10, [10]),
        ({"epochs": 1, "max_steps": 10}, 7, [7]),
        ({"epochs": 9, "max_steps": 10}, 10, [7, 10]),
        ({"epochs": 2, "validate_every_steps": 5}, 14, [5, 10, 14]),
    ],
)
def test_a_training_ends_and_is_validated_after_these_steps(
    given: dict[str, int], total: int, validated: list[int]
) -> None:
    length = Length.of(Training(**given), steps_per_epoch=7)
    assert length.total == total
    assert [step for step in range(1, total + 1) if length.is_validated(step)] == validated
    assert length.validations == len(validated)
    found = [0]
    while found[-1] < total:
        found.append(length.next_validation(found[-1]))
    assert found[1:] == validated


def test_an_epoch_is_whole_or_a_fraction() -> None:
    length = Length.of(Training(max_steps=10), steps_per_epoch=7)
    assert [repr(length.epoch_at(step)) for step in (1, 7, 10, 14)] == ["0.142857", "1", "1.428571", "2"]


def test_steps_replace_epochs_that_are_not_given() -> None:
    assert load(training={"max_steps": 5}).training.epochs is None
    assert load(training={"max_steps": 5, "epochs": 10}).training.epochs == 10
    assert load(training={"epochs": 10}).training.max_steps is None
    assert load(schedule={"name": "step", "every_steps": 5}).schedule.every_epochs is None


def test_a_point_in_steps_replaces_the_epochs_of_the_experiment(tmp_path: Path) -> None:
    experiment = load(sweep={"grid": {"training.max_steps": [None, 5]}})
    frozen = config.load([plan.freeze_experiment(experiment, tmp_path)])
    for read in (experiment, frozen):  # a frozen experiment has every default
        runs = [run.config.training for run in plan.expand(read)]
        assert [(run.epochs, run.max_steps) for run in runs] == [(10, None), (None, 5)]
    both = load(training={"epochs": 3, "max_steps": 9}, sweep={"grid": {"training.max_steps": [5]}})
    (run,) = plan.expand(both)
    assert (run.config.training.epochs, run.config.training.max_steps) == (3, 5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"epochs": None}}, "training.epochs: nothing ends the training"),
        ({"schedule": {"warmup_epochs": 1, "warmup_steps": 5}}, "schedule.warmup_steps: 5 steps, and"),
        (
            {"training": {"max_steps": 5}, "schedule": {"warmup_steps": 6}},
            "schedule.warmup_steps: the warm-up (6",
        ),
        ({"schedule": {"warmup_steps": 10_000}}, "schedule.warmup_steps: the warm-up (10,000 steps)"),
        (
            {"training": {"max_steps": 5}, "schedule": {"warmup_epochs": 1}},
            "schedule.warmup_epochs: the warm-up (18 steps)",
        ),
        ({"schedule": {"name": "step", "every_epochs": 2, "every_steps": 5}}, "schedule.every_steps: 5, and"),
        ({"schedule": {"name": "step", "every_epochs": None}}, "schedule.every_steps: null, and"),
        ({"training": {"max_steps": 0}}, "training.max_steps: 0 is not allowed; allowed: a whole number, at least 1"),
    ],
)
def test_numbers_that_contradict_each_other_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as found:
        load(**values)
    (line,) = str(found.value).splitlines()
    assert line.startswith(message)


def test_a_new_setting_is_not_in_the_files_of_an_experiment_without_it(tmp_path: Path) -> None:
    text = plan.freeze_experiment(load(), tmp_path).read_text()
    assert "max_steps" not in text
    assert "warmup_steps" not in text
