"""The laws of a loss. A new one, also one outside this repository, inherits them:

from tests.training.contract import LossContract

class TestMine(LossContract):
    loss = "mypackage.mine:dice"
    params = {"smooth": 1.0}
    kind = "masks"

`kind` is that of the targets: "classes" (the default), "labels", "numbers", "masks" or "tokens".
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from tests.metrics.contract import SAMPLES, batch
from workflow_lib.config.run import Training
from workflow_lib.training.loss import UserLoss


class LossContract:
    """Every test here must hold for the `loss` with the arguments `params`, and targets of the `kind`.

    `is_mean = False` is for a loss of a batch that is no mean over its samples, and so depends on the micro-batches.
    """

    loss: ClassVar[str]
    params: ClassVar[dict[str, Any]] = {}
    kind: ClassVar[str] = "classes"
    outputs: ClassVar[int] = 6
    is_mean: ClassVar[bool] = True

    @pytest.fixture
    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        return batch(self.kind, self.outputs)

    def made(self) -> UserLoss:
        settings = Training.model_validate({"loss": self.loss, "loss_params": self.params})
        return UserLoss(str(settings.loss), settings.loss_params, torch.device("cpu"))

    def value(self, loss: UserLoss, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        torch.manual_seed(0)
        return float(loss(outputs, targets).mean())

    def test_every_output_that_counts_has_a_finite_gradient(self, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
        outputs = pair[0].requires_grad_()
        self.made()(outputs, pair[1]).mean().backward()
        assert outputs.grad is not None
        assert outputs.grad.isfinite().all()
        assert outputs.grad.flatten(1).abs().sum() > 0

    def test_a_call_changes_no_later_one(self, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
        outputs, targets = pair
        loss = self.made()
        first = self.value(loss, outputs, targets)
        self.value(loss, outputs[:7], targets[:7])
        assert self.value(loss, outputs, targets) == first == self.value(self.made(), outputs, targets)

    def test_the_loss_of_a_batch_is_the_mean_of_its_halves(self, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
        if not self.is_mean:
            pytest.skip("is_mean = False")
        outputs, targets = pair
        half = SAMPLES // 2
        halves = [self.value(self.made(), outputs[part], targets[part]) for part in (slice(half), slice(half, None))]
        assert self.value(self.made(), outputs, targets) == pytest.approx(sum(halves) / 2, rel=1e-3)
