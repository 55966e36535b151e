"""A user's model with a weight that is not trained and follows a trained one, in the forward pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from workflow_lib.plugins import Section

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.data import ModelSpec


class Params(Section):
    """Size."""

    backbone: int = Field(0, ge=0, description="more weights that are not trained, and stay as they are")


def build(params: Params, spec: ModelSpec) -> nn.Module:
    """float32 [B, *input_shape] to logits [B, classes]."""
    import torch
    from torch import nn

    class Taught(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Linear(math.prod(spec.input_shape), spec.outputs)
            self.teacher = nn.Linear(math.prod(spec.input_shape), spec.outputs).requires_grad_(False)
            self.backbone = nn.Parameter(torch.zeros(params.backbone), requires_grad=False)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            inputs = inputs.flatten(1)
            if self.training:
                with torch.no_grad():
                    self.teacher.weight.lerp_(self.own.weight, 0.1)
            outputs: torch.Tensor = self.own(inputs) + self.teacher(inputs).detach()
            return outputs

    return Taught()
