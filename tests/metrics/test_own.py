"""Metrics of torchmetrics and of the user: the value of the whole split, however it is cut; states that come back."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchmetrics.functional as functional

from workflow_lib.config.measures import KNOWN, Metric, names_for
from workflow_lib.errors import ConfigError
from workflow_lib.metrics.own import Measures, Merged, build

SAMPLES = 60
KINDS = ("classes", "labels", "numbers", "masks", "tokens")
TASKS = {"classes": "classification", "numbers": "regression", "tokens": "language"}


def measures(kind: str, *metrics: Any, outputs: int = 6) -> Measures:
    """Return the metrics of a task with targets of this kind."""
    manifest: Any = SimpleNamespace(
        task=TASKS[kind], spec=SimpleNamespace(outputs=outputs), target_mean=[1.0] * outputs, target_std=[2.0] * outputs
    )
    return Measures([Metric.model_validate(metric) for metric in metrics], manifest)


def batch(kind: str, outputs: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if kind == "numbers":
        targets = torch.randn(SAMPLES, outputs, generator=generator)
        return targets + 0.5 * torch.randn(SAMPLES, outputs, generator=generator), targets
    if kind == "tokens":
        return torch.randn(SAMPLES, 5, 6, generator=generator), torch.randint(6, (SAMPLES, 5), generator=generator)
    return torch.randn(SAMPLES, 6, generator=generator), torch.randint(6, (SAMPLES,), generator=generator)


def over(found: Measures, outputs: torch.Tensor, targets: torch.Tensor, size: int) -> dict[str, float | None]:
    """Return the values over batches of this size; the batches are measured in inference mode, as in a validation."""
    found.reset()
    for first in range(0, len(outputs), size):
        with torch.inference_mode():
            part = found.contribution(outputs[first : first + size], targets[first : first + size])
        found.add(part)
    return found.values()


@pytest.mark.parametrize("kind", TASKS)
def test_every_short_name_has_the_value_of_the_whole_split_however_it_is_cut(kind: str) -> None:
    names = names_for(kind)
    outputs, targets = batch(kind)
    found = measures(kind, *names)
    whole = over(found, outputs, targets, SAMPLES)
    assert list(whole) == names
    for size in (1, 7, 32):
        assert over(found, outputs, targets, size) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in names_for(kind)])
def test_every_short_name_can_be_built_and_says_its_direction(kind: str, name: str) -> None:
    made = build(Metric(name=name), kind, 6)
    assert made.name == name
    found = getattr(getattr(made, "_metric", None), "higher_is_better", None)
    assert found in (None, KNOWN[name].maximize)


def test_probabilities_are_compared_with_classes_and_numbers_in_their_units() -> None:
    outputs, targets = batch("classes")
    assert over(measures("classes", "auroc"), outputs, targets, 9)["auroc"] == pytest.approx(
        float(functional.auroc(outputs.softmax(1), targets, task="multiclass", num_classes=6))
    )
    outputs, targets = batch("numbers", 1)
    found = over(measures("numbers", "mape", "pearson", outputs=1), outputs, targets, 9)
    assert found["mape"] == pytest.approx(
        float(functional.mean_absolute_percentage_error(outputs * 2 + 1, targets * 2 + 1)), rel=1e-5
    )


OWN = ["tests.plugins.own:Streak", {"name": "tests.plugins.own:spread", "maximize": False}]


def test_states_come_back_after_any_batch() -> None:
    metrics = ["f1_macro", "auroc", {"name": "auroc", "label": "binned", "params": {"thresholds": 20}}, *OWN]
    outputs, targets = batch("classes")
    straight = over(measures("classes", *metrics), outputs, targets, 10)
    for stop in range(0, 60, 10):
        first, second = measures("classes", *metrics), measures("classes", *metrics)
        for start in range(0, stop, 10):
            first.add(first.contribution(outputs[start : start + 10], targets[start : start + 10]))
        tensors, rest = first.save()
        second.load({name: value.clone() for name, value in tensors.items()}, json.loads(json.dumps(rest)))
        for start in range(stop, 60, 10):
            second.add(second.contribution(outputs[start : start + 10], targets[start : start + 10]))
        assert second.values() == straight
        first.reset()
        assert over(first, outputs, targets, 10) == straight


def test_only_lists_and_whole_functions_hold_numbers_of_each_sample() -> None:
    assert not measures("classes", "f1_macro", "cohen_kappa", {"auroc": {"thresholds": 20}}).are_large
    assert measures("classes", "auroc").are_large
    assert isinstance(build(Metric(name="r2"), "numbers", 2), Merged)


def test_a_metric_without_a_value_is_none_and_not_an_error() -> None:
    outputs, targets = torch.zeros(8, 1), torch.randn(8, 1)
    assert over(measures("numbers", "pearson", outputs=1), outputs, targets, 4) == {"pearson": None}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Table", "tests.plugins.own:Table computes a dict; allowed: a number"),
        ("Unsaved", "`unsaved.counts` is {1, 2}, a set, which no checkpoint holds"),
    ],
)
def test_what_is_no_number_or_cannot_be_saved_is_rejected(name: str, said: str) -> None:
    found = measures("classes", f"tests.plugins.own:{name}")
    found.add(found.contribution(*batch("classes")))
    with pytest.raises(ConfigError, match="training.metrics") as rejected:
        found.save() if name == "Unsaved" else found.values()
    assert said in str(rejected.value)


def test_a_wrapper_of_other_metrics_is_rejected() -> None:
    wrapped = Metric(name="tests.plugins.own:wrapped", maximize=True)
    with pytest.raises(ConfigError, match="wraps other metrics"):
        build(wrapped, "classes", 6)
