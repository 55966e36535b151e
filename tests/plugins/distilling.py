"""A student learns from the labels and from a teacher: a trained model, whose weights are a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file
from torch import Tensor, no_grad
from torch.nn import functional

from workflow_lib import TrainingStep

if TYPE_CHECKING:
    from workflow_lib import Context, Setup


class Step(TrainingStep):
    """The student is the model of the run; the teacher is an mlp. Hinton et al., 2015 (arXiv 1503.02531)."""

    logs = ("distillation",)

    def __init__(self, *, teacher: Path, hidden: list[int], weight: float = 0.5, temperature: float = 2.0) -> None:
        super().__init__()
        self.path, self.hidden, self.weight, self.temperature = teacher, hidden, weight, temperature

    def build(self, setup: Setup) -> None:
        self.teacher = setup.build_model("mlp", {"hidden": self.hidden})
        self.teacher.load_state_dict(load_file(self.path))
        self.teacher.requires_grad_(False)

    def step(self, batch: tuple[Tensor, Tensor], context: Context) -> Tensor:
        inputs, targets = batch
        with context.autocast():
            outputs = self.model(inputs)
            with no_grad():
                taught = self.teacher(inputs)
        soft = functional.kl_div(
            functional.log_softmax(outputs / self.temperature, 1),
            functional.log_softmax(taught / self.temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        distillation = soft * self.temperature**2
        loss = (1 - self.weight) * functional.cross_entropy(outputs, targets) + self.weight * distillation
        loss.backward()
        context.optimizers["model"].step()
        context.log("distillation", distillation)
        return loss
