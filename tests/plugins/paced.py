"""A small model that waits in each step and counts them, or raises: for tests that watch or kill a training."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib.plugins import Section

if TYPE_CHECKING:
    from workflow_lib.data import ModelSpec

PAUSE = "EVERSTEP_TEST_PAUSE_S"
COUNTED = "steps.bin"  # in the project's folder: one byte per forward pass of training
FAIL = "fail"  # training raises while this file exists
HURRY = "hurry"  # steps do not wait while this file exists


class Params(Section):
    pass


def build(params: Params, spec: ModelSpec) -> Any:
    """One linear layer."""
    import torch
    from torch import nn

    class Paced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, spec.outputs)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if self.training:
                if not Path(HURRY).exists():
                    time.sleep(float(os.environ.get(PAUSE, "0")))
                if Path(FAIL).exists():
                    raise RuntimeError("told to fail")
                with open(COUNTED, "ab", buffering=0) as file:
                    file.write(b".")
            logits: torch.Tensor = self.layer(inputs.flatten(1))
            return logits

    return Paced()
