"""A user's loss: of each sample or their mean, however a batch is divided; what it may not be is rejected."""

from __future__ import annotations

import logging
from typing import ClassVar

import pytest
import torch
from torch.nn import functional

from tests.training.contract import LossContract
from workflow_lib.config.run import Training
from workflow_lib.errors import ConfigError, EverstepError
from workflow_lib.tasks import Objective
from workflow_lib.tasks.classification import CrossEntropy
from workflow_lib.training.loss import with_own_loss

CPU = torch.device("cpu")
OUTPUTS = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
TARGETS = torch.arange(12) % 4


def objective(name: str, ranks: int = 1, **settings: object) -> Objective:
    training = Training.model_validate({"loss": f"tests.plugins.own:{name}", **settings})
    return with_own_loss(CrossEntropy(), training, CPU, ranks=ranks)


class TestOfEachSample(LossContract):
    loss = "tests.plugins.own:smoothed"
    params: ClassVar = {"power": 2.0}


class TestOfBatch(LossContract):
    loss = "tests.plugins.own:Weighted"


def test_without_a_loss_the_objective_is_the_tasks() -> None:
    task = CrossEntropy()
    assert with_own_loss(task, Training(), CPU) is task


def test_a_loss_of_each_sample_is_averaged_and_can_be_mixed() -> None:
    own, task = objective("smoothed", loss_params={"power": 1.0}), CrossEntropy()
    torch.testing.assert_close(own.loss(OUTPUTS, TARGETS), task.loss(OUTPUTS, TARGETS))
    torch.testing.assert_close(own.losses(OUTPUTS, TARGETS), task.losses(OUTPUTS, TARGETS))
    others, weights = TARGETS.flip(0), torch.linspace(0, 1, 12)
    torch.testing.assert_close(
        own.mixed_loss(OUTPUTS, TARGETS, others, weights), task.mixed_loss(OUTPUTS, TARGETS, others, weights)
    )


def test_a_loss_with_several_numbers_a_sample_is_their_mean() -> None:
    training = Training.model_validate({"loss": "torch.nn:MSELoss", "loss_params": {"reduction": "none"}})
    own, targets = with_own_loss(CrossEntropy(), training, CPU), torch.zeros(12, 4)
    torch.testing.assert_close(own.loss(OUTPUTS, targets), functional.mse_loss(OUTPUTS, targets))
    torch.testing.assert_close(own.losses(OUTPUTS, targets), OUTPUTS.square().mean(1))


def test_the_validation_reports_the_users_loss_and_the_tasks_other_metrics() -> None:
    own = objective("smoothed", loss_params={"power": 2.0})
    parts = sum(own.measure(OUTPUTS[part], TARGETS[part]) for part in (slice(0, 5), slice(5, 12)))
    assert isinstance(parts, torch.Tensor)
    found = own.metrics(dict(zip(own.sums, parts.tolist(), strict=True)))
    each = functional.cross_entropy(OUTPUTS, TARGETS, reduction="none").square()
    assert found["val_loss"] == pytest.approx(each.mean().item())
    assert found["val_accuracy"] == (OUTPUTS.argmax(1) == TARGETS).double().mean().item()
    assert list(found) == ["val_loss", "val_accuracy"]


def test_a_module_with_constants_is_called() -> None:
    own = objective("Weighted", loss_params={"weight": 3.0})
    torch.testing.assert_close(own.loss(OUTPUTS, TARGETS), 3 * functional.cross_entropy(OUTPUTS, TARGETS))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Learned", "has weights of its own"),
        ("Counting", "changes its buffer `weights`"),
        ("a_word", "returns str for 12 samples; allowed: a tensor of floats"),
        ("of_three", "returns torch.float32 (3,) for 12 samples"),
        ("Scheduler", "cannot be called"),
    ],
)
def test_what_no_checkpoint_or_step_can_hold_is_rejected(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match="training.loss") as rejected:
        objective(name).loss(OUTPUTS, TARGETS)
    assert said in str(rejected.value)


def test_a_failure_of_the_users_code_names_its_line() -> None:
    with pytest.raises(EverstepError, match=r"training.loss: tests.plugins.own:smoothed failed: .*\.py:\d+"):
        objective("smoothed").loss(OUTPUTS, TARGETS[:3])


def test_one_number_for_a_batch_cannot_be_mixed() -> None:
    with pytest.raises(ConfigError, match=r"augment.mixup and augment.cutmix need the loss of each sample"):
        objective("of_batch").mixed_loss(OUTPUTS, TARGETS, TARGETS, torch.ones(12))


def test_a_loss_that_depends_on_the_division_of_a_batch_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for ranks, steps in ((1, 1), (1, 2), (2, 1)):
            own = objective("of_batch", ranks, accumulation_steps=steps)
            own.loss(OUTPUTS, TARGETS)
            own.loss(OUTPUTS, TARGETS)
        assert len(caplog.records) == 2
        assert "is not the mean of its halves" in caplog.text
        caplog.clear()
        for name in ("smoothed", "Weighted"):
            objective(name, 3).loss(OUTPUTS, TARGETS)
    assert caplog.text == ""


def test_the_check_of_the_division_leaves_no_trace_in_the_generators() -> None:
    before = torch.get_rng_state()
    objective("of_batch", 2).loss(OUTPUTS, TARGETS)
    assert torch.equal(torch.get_rng_state(), before)
