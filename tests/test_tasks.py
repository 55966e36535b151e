"""Losses and metrics of each task, against what torch computes in one piece."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from workflow_lib.config.sections import METRICS, Training
from workflow_lib.shards import ModelSpec
from workflow_lib.tasks import Classification, Language, Regression, Task, build

BATCH = 12


def example(name: str) -> tuple[Task, torch.Tensor, torch.Tensor]:
    """A task, and outputs and targets of a batch of it."""
    torch.manual_seed(3)
    if name == "regression":
        return Regression(std=(2.0, 5.0)), torch.randn(BATCH, 2), torch.randn(BATCH, 2)
    if name == "language":
        return Language(smoothing=0.1), torch.randn(BATCH, 5, 7), torch.randint(7, (BATCH, 5))
    return Classification(smoothing=0.1), torch.randn(BATCH, 4), torch.randint(4, (BATCH,))


@pytest.mark.parametrize("name", METRICS)
def test_the_loss_is_the_mean_of_the_samples_losses(name: str) -> None:
    task, outputs, targets = example(name)
    losses = task.losses(outputs, targets)
    assert losses.shape == (BATCH,)
    torch.testing.assert_close(task.loss(outputs, targets), losses.mean())


@pytest.mark.parametrize("name", METRICS)
def test_metrics_are_those_of_the_whole_split_however_it_is_cut(name: str) -> None:
    task, outputs, targets = example(name)
    whole = task.metrics(dict(zip(task.sums, task.measure(outputs, targets).tolist(), strict=True)))
    parts = sum(task.measure(outputs[part], targets[part]) for part in (slice(0, 5), slice(5, BATCH)))
    assert isinstance(parts, torch.Tensor)
    assert task.metrics(dict(zip(task.sums, parts.tolist(), strict=True))) == pytest.approx(whole)
    assert ("train_loss", *whole) == METRICS[name]  # type: ignore[index]


def test_the_error_of_a_regression_is_in_the_units_of_the_data() -> None:
    task = Regression(std=(10.0,))
    sums = task.measure(torch.tensor([[0.5], [-1.0]]), torch.tensor([0.0, 0.0]))
    assert task.metrics(dict(zip(task.sums, sums.tolist(), strict=True))) == {"val_loss": 0.625, "val_mae": 7.5}


def test_a_language_model_sees_all_tokens_but_the_last_and_tells_all_but_the_first() -> None:
    tokens = torch.arange(12).view(2, 6)
    inputs, targets = Language().parts(tokens, torch.empty(2, 0))
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [6, 7, 8, 9, 10]]
    assert targets.tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11]]


def test_smoothing_is_part_of_the_training_and_not_of_the_validation() -> None:
    task, outputs, targets = example("classification")
    smooth = functional.cross_entropy(outputs, targets, label_smoothing=0.1)
    assert task.loss(outputs, targets).item() == smooth.item()
    assert task.measure(outputs, targets)[0].item() == functional.cross_entropy(outputs, targets, reduction="sum")


@pytest.mark.parametrize(
    ("name", "kind"), [("classification", Classification), ("regression", Regression), ("language", Language)]
)
def test_the_task_of_the_data_is_built(name: str, kind: type[Task]) -> None:
    assert type(build(Training(), ModelSpec((3,), 4, name))) is kind
