"""A user's model that draws from every generator and has buffers, which a resume must restore."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from pydantic import Field

from workflow_lib.plugins import Section

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.data import ModelSpec


class Params(Section):
    """Size and shape."""

    hidden: int = Field(24, ge=1, description="units of the hidden layer")
    tied: bool = Field(False, description="two more layers that share one weight")


def build(params: Params, spec: ModelSpec) -> nn.Module:
    """float32 [B, *input_shape] to logits [B, classes], with noise from python, numpy and torch in training."""
    import numpy as np
    import torch
    from torch import nn

    class Noise(nn.Module):
        """Scale by a number of each generator. The Gaussian generators of Python and NumPy store a second number."""

        calls: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if not self.training:
                return inputs
            self.calls += 1
            return inputs * (1 + 0.05 * random.gauss(0, 1) + 0.05 * float(np.random.standard_normal()))

    shared = [nn.Linear(params.hidden, params.hidden, bias=False) for _ in range(2 if params.tied else 0)]
    for one in shared:
        one.weight = shared[0].weight
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(spec.input_shape), params.hidden),
        nn.BatchNorm1d(params.hidden),
        nn.ReLU(),
        Noise(),
        *shared,
        nn.Dropout(0.2),
        nn.Linear(params.hidden, spec.outputs),
    )
