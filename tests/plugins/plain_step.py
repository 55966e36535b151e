"""A training step that computes what a training without a step of one's own does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

from workflow_lib import TrainingStep

if TYPE_CHECKING:
    from workflow_lib import Context


class Step(TrainingStep):
    """Cross-entropy of the model."""

    logs = ("same",)

    def step(self, batch: tuple[Tensor, Tensor], context: Context) -> Tensor:
        loss = functional.cross_entropy(self.model(batch[0]), batch[1])
        loss.backward()
        context.optimizers["model"].step()
        context.log("same", loss)
        return loss


class Uneven(Step):
    """Keeps another value on each rank."""

    def step(self, batch: tuple[Tensor, Tensor], context: Context) -> Tensor:
        self.values["rank"] = context.rank
        return super().step(batch, context)
