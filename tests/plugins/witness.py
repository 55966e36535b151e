"""A user's model that records the arithmetic it is called with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from workflow_lib.plugins import Section

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.data import ModelSpec

SEEN: list[dict[str, Any]] = []


class Params(Section):
    """Parameters of the model."""

    kernel: Literal["deterministic", "not"] = Field("deterministic", description="not: the test has no such kernel")


def build(params: Params, spec: ModelSpec) -> nn.Module:
    """float32 [B, ...] to logits [B, classes]."""
    import torch
    from torch import nn

    class Witness(nn.Module):
        """A linear layer."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(torch.Size(spec.input_shape).numel(), spec.outputs)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if not self.training:
                SEEN.append(switches())
                if params.kernel == "not":
                    torch.zeros(1).put_(torch.tensor([0]), torch.tensor([1.0]))
            outputs: torch.Tensor = self.layer(inputs.flatten(1))
            return outputs

    return Witness()


def switches() -> dict[str, Any]:
    """Return all switches that determine the arithmetic of this process."""
    import torch

    backends: Any = torch.backends
    return {
        "matmul": torch.get_float32_matmul_precision(),
        "cublas": backends.cuda.matmul.allow_tf32,
        "cudnn": backends.cudnn.allow_tf32,
        "convolutions": backends.cudnn.conv.fp32_precision,
        "on the CPU": backends.mkldnn.matmul.fp32_precision,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "only warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn deterministic": backends.cudnn.deterministic,
        "cudnn tries kernels": backends.cudnn.benchmark,
        "autocast": torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"),
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "override": os.environ.get("NVIDIA_TF32_OVERRIDE"),
    }
