"""Losses and metrics of each objective, against what torch computes for the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from workflow_lib.errors import ConfigError
from workflow_lib.plugins import task_facts, task_names
from workflow_lib.tasks import Objective
from workflow_lib.tasks.classification import CrossEntropy, class_weights
from workflow_lib.tasks.language import TokenCrossEntropy
from workflow_lib.tasks.multilabel import BinaryCrossEntropy
from workflow_lib.tasks.regression import SquaredError
from workflow_lib.tasks.segmentation import PixelCrossEntropy

BATCH = 12
CPU = torch.device("cpu")
TASKS = task_names()


def example(name: str, device: torch.device = CPU) -> tuple[Objective, torch.Tensor, torch.Tensor]:
    """An objective, and outputs and targets of a batch of it."""
    torch.manual_seed(3)
    if name == "regression":
        return SquaredError(std=(2.0, 5.0), device=device), torch.randn(BATCH, 2), torch.randn(BATCH, 2)
    if name == "segmentation":
        masks = torch.randint(3, (BATCH, 4, 5))
        masks[:, :, 0] = 255
        return PixelCrossEntropy(3, smoothing=0.1), torch.randn(BATCH, 3, 4, 5), masks
    if name == "multilabel":
        return BinaryCrossEntropy(4, smoothing=0.1), torch.randn(BATCH, 4), torch.randint(2, (BATCH, 4))
    if name == "language":
        return TokenCrossEntropy(smoothing=0.1), torch.randn(BATCH, 5, 7), torch.randint(7, (BATCH, 5))
    return CrossEntropy(smoothing=0.1), torch.randn(BATCH, 4), torch.randint(4, (BATCH,))


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_is_the_mean_of_the_samples_losses(name: str) -> None:
    objective, outputs, targets = example(name)
    losses = objective.losses(outputs, targets)
    assert losses.shape == (BATCH,)
    torch.testing.assert_close(objective.loss(outputs, targets), losses.mean())


@pytest.mark.parametrize("name", TASKS)
def test_metrics_are_those_of_the_whole_split_however_it_is_cut(name: str) -> None:
    objective, outputs, targets = example(name)
    whole = objective.metrics(dict(zip(objective.sums, objective.measure(outputs, targets).tolist(), strict=True)))
    parts = sum(objective.measure(outputs[part], targets[part]) for part in (slice(0, 5), slice(5, BATCH)))
    assert isinstance(parts, torch.Tensor)
    assert objective.metrics(dict(zip(objective.sums, parts.tolist(), strict=True))) == pytest.approx(whole)
    assert ("train_loss", *whole)[:3] == task_facts(name).curves


def test_the_error_of_a_regression_is_in_the_units_of_the_data() -> None:
    objective = SquaredError(std=(10.0,))
    sums = objective.measure(torch.tensor([[0.5], [-1.0]]), torch.tensor([0.0, 0.0]))
    assert objective.metrics(dict(zip(objective.sums, sums.tolist(), strict=True))) == {
        "val_loss": 0.625,
        "val_mae": 7.5,
    }


def test_each_of_several_numbers_has_its_error_and_the_metric_is_their_mean() -> None:
    objective = SquaredError(std=(10.0, 100.0, 1.0))
    outputs, targets = torch.tensor([[0.5, 1.0, 0.0], [-1.0, 3.0, 4.0]]), torch.zeros(2, 3)

    def metrics(*names: str) -> dict[str, float]:
        objective.targets = names
        return objective.metrics(dict(zip(objective.sums, objective.measure(outputs, targets).tolist(), strict=True)))

    found = metrics("price (EUR)", "a, b", "a-b")
    assert found == {
        "val_loss": pytest.approx(27.25 / 6),
        "val_mae": pytest.approx((7.5 + 200 + 2) / 3),
        "val_mae/price_EUR": 7.5,
        "val_mae/a_b_1": 200.0,
        "val_mae/a_b_2": 2.0,
    }
    assert list(metrics())[2:] == ["val_mae/0", "val_mae/1", "val_mae/2"]
    assert len(SquaredError(std=(1.0,) * 33).sums) == len(SquaredError(std=(1.0,)).sums) == 3


def test_a_language_model_sees_all_tokens_but_the_last_and_tells_all_but_the_first() -> None:
    tokens = torch.arange(12).view(2, 6)
    inputs, targets = TokenCrossEntropy().parts(tokens, torch.empty(2, 0))
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [6, 7, 8, 9, 10]]
    assert targets.tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11]]


def test_smoothing_is_part_of_the_training_and_not_of_the_validation() -> None:
    objective, outputs, targets = example("classification")
    smooth = functional.cross_entropy(outputs, targets, label_smoothing=0.1)
    assert objective.loss(outputs, targets).item() == smooth.item()
    assert objective.measure(outputs, targets)[0].item() == functional.cross_entropy(outputs, targets, reduction="sum")


def test_focal_loss_counts_less_what_is_told_already() -> None:
    _, outputs, targets = example("classification")
    plain = functional.cross_entropy(outputs, targets, reduction="none")
    known = outputs.softmax(1)[torch.arange(BATCH), targets]
    expected = plain * (1 - known) ** 2
    torch.testing.assert_close(CrossEntropy(focal_gamma=2.0).losses(outputs, targets), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_has_a_gradient_where_a_sample_is_told_for_certain(gamma: float) -> None:
    outputs = torch.tensor([[200.0, 0.0]], requires_grad=True)
    CrossEntropy(focal_gamma=gamma).loss(outputs, torch.tensor([0])).backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()


def test_weights_of_classes_multiply_the_losses_of_their_samples() -> None:
    _, outputs, targets = example("classification")
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    objective = CrossEntropy(smoothing=0.1, weights=weights)
    expected = functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1) * weights[targets]
    torch.testing.assert_close(objective.losses(outputs, targets), expected)
    torch.testing.assert_close(objective.loss(outputs, targets), expected.mean())


def test_a_weighted_loss_is_the_same_however_the_batch_is_cut() -> None:
    _, outputs, targets = example("classification")
    objective = CrossEntropy(focal_gamma=1.0, weights=torch.tensor([0.5, 1.0, 2.0, 4.0]))
    parts = [
        objective.loss(outputs[part], targets[part]) * 0.25 for part in map(slice, range(0, 12, 3), range(3, 15, 3))
    ]
    torch.testing.assert_close(sum(parts), objective.loss(outputs, targets))


def test_balanced_weights_give_every_class_the_same_sum_and_are_one_in_the_mean() -> None:
    weights = class_weights("balanced", (10, 30, 60))
    assert weights is not None
    assert [weight * count for weight, count in zip(weights, (10, 30, 60), strict=True)] == pytest.approx([100 / 3] * 3)


def test_a_list_of_weights_must_have_one_for_each_class() -> None:
    assert class_weights([1.0, 2.0], (3, 4)) == [1.0, 2.0]
    with pytest.raises(ConfigError, match="training.class_weights: 2 weights; the data has 3 classes"):
        class_weights([1.0, 2.0], (3, 4, 5))


@pytest.mark.parametrize("name", TASKS)
def test_the_sums_are_made_where_the_outputs_are_and_nothing_waits_for_them(name: str) -> None:
    """Uses meta tensors, which have no values to read."""
    objective, outputs, targets = example(name, torch.device("meta"))
    sums = objective.measure(outputs.to("meta"), targets.to("meta"))
    assert (sums.device.type, sums.dtype, sums.shape) == ("meta", torch.float64, (len(objective.sums),))
