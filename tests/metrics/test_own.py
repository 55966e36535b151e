"""Metrics of torchmetrics and of the user: the value of the whole split, however it is cut; states that come back."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import torchmetrics.functional as functional

from tests.metrics.contract import SAMPLES, TASKS, MetricContract, batch, measures, over
from workflow_lib import plugins
from workflow_lib.config.measures import KNOWN, Metric, names_for
from workflow_lib.config.run import Training
from workflow_lib.data import ModelSpec
from workflow_lib.errors import ConfigError
from workflow_lib.metrics.own import Merged, build
from workflow_lib.plan.metric_check import problem

KINDS = tuple(TASKS)


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


class TestShipped(MetricContract):
    metric = "f1_macro"


class TestList(MetricContract):
    metric = "auroc"


class TestBinned(MetricContract):
    metric: ClassVar = {"name": "auroc", "label": "binned", "params": {"thresholds": 20}}


class TestMasks(MetricContract):
    metric, kind = "iou", "masks"


class TestStepwise(MetricContract):
    metric = "tests.plugins.own:Streak"


class TestWhole(MetricContract):
    metric: ClassVar = {"name": "tests.plugins.own:spread", "maximize": False}


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


def tried(kind: str, metric: Metric, outputs: int) -> ConfigError | None:
    shape = (1, 4, 4) if kind == "masks" else (5,)
    vocabulary = outputs if kind == "tokens" else 0
    return problem(metric, ModelSpec(shape, outputs, TASKS[kind], vocabulary=vocabulary), Training())


@pytest.mark.parametrize("kind", TASKS)
def test_a_metric_that_fits_the_task_is_never_rejected_by_its_trial(kind: str) -> None:
    names = names_for(plugins.task_facts(TASKS[kind]).targets)
    for outputs in (1, 6) if kind == "numbers" else (5, 6):
        found = {name: tried(kind, Metric(name=name), outputs) for name in names}
        assert not any(found.values()), found
    assert tried(kind, Metric(name="tests.plugins.own:spread", maximize=True), 2) is None


@pytest.mark.parametrize("outputs", [2, 6])
def test_a_metric_of_another_task_is_rejected_before_the_training(outputs: int) -> None:
    assert tried("classes", Metric(name="tests.plugins.own:Streak"), outputs) is None
    for kind, name in (
        ("classes", "torchmetrics.regression:MeanSquaredError"),
        ("masks", "torchmetrics.regression:MeanSquaredError"),
        ("numbers", "torchmetrics.classification:MulticlassAccuracy"),
    ):
        assert f"training.metrics: {name}" in str(tried(kind, Metric(name=name), outputs))


def test_a_wrapper_of_other_metrics_is_rejected() -> None:
    wrapped = Metric(name="tests.plugins.own:wrapped", maximize=True)
    with pytest.raises(ConfigError, match="wraps other metrics"):
        build(wrapped, "classes", 6)
