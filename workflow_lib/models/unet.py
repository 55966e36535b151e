"""U-Net (Ronneberger et al., 2015) for masks: each pixel of an image gets an answer. For images of any size.

Each level halves the image and doubles the channels; on the way back, the features of the same size are put beside.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workflow_lib.errors import ConfigError
from workflow_lib.plugins import Answers, Inputs, Section

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.data import ModelSpec

TAKES: tuple[Inputs, ...] = ("images",)
GIVES: tuple[Answers, ...] = ("pixel",)


class Params(Section):
    """Depth, width and normalisation."""

    levels: int = Field(2, ge=1, le=8, description="times that the image is halved")
    width: int = Field(16, ge=1, le=1_000_000, description="channels at the size of the image")
    norm: Literal["batch", "group"] = Field(
        "batch", description="over the batch, or, where few samples are computed at once, over groups of channels"
    )


def build(params: Params, spec: ModelSpec) -> nn.Module:
    """Return the model: float32 [B, C, H, W] to [B, outputs, H, W]. Weights are drawn from torch's global generator."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    if len(spec.input_shape) != 3 or min(spec.input_shape[1:]) < 2**params.levels:
        raise ConfigError(
            f"model.name: unet with {params.levels} levels needs images (channels, height, width) of at least "
            f"{2**params.levels} pixels a side; the data has inputs {spec.input_shape}"
        )
    widths = [params.width * 2**level for level in range(params.levels + 1)]

    def block(inner: int, outer: int) -> nn.Module:
        layers: list[nn.Module] = []
        for channels in (inner, outer):
            norm = nn.BatchNorm2d(outer) if params.norm == "batch" else nn.GroupNorm(math.gcd(32, outer), outer)
            layers += [nn.Conv2d(channels, outer, 3, 1, 1, bias=False), norm, nn.ReLU()]
        return nn.Sequential(*layers)

    class Net(nn.Module):
        """Strided convolutions go down, transposed ones up: both have deterministic kernels."""

        def __init__(self) -> None:
            super().__init__()
            pairs = list(zip(widths, widths[1:], strict=False))
            self.first = block(spec.input_shape[0], widths[0])
            self.halve = nn.ModuleList(nn.Conv2d(inner, inner, 2, 2) for inner, _ in pairs)
            self.down = nn.ModuleList(block(inner, outer) for inner, outer in pairs)
            self.enlarge = nn.ModuleList(nn.ConvTranspose2d(outer, inner, 2, 2) for inner, outer in pairs)
            self.up = nn.ModuleList(block(2 * inner, inner) for inner, _ in pairs)
            self.head = nn.Conv2d(widths[0], spec.outputs, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            features = [self.first(inputs)]
            for halve, down in zip(self.halve, self.down, strict=True):
                features.append(down(halve(features[-1])))
            outputs = features.pop()
            for enlarge, up in zip([*self.enlarge][::-1], [*self.up][::-1], strict=True):
                beside = features.pop()
                outputs = enlarge(outputs)
                # an odd side was halved to the smaller number
                rest = [beside.shape[side] - outputs.shape[side] for side in (3, 2)]
                outputs = functional.pad(outputs, (0, rest[0], 0, rest[1]))
                outputs = up(torch.cat((beside, outputs), 1))
            return self.head(outputs)

    return Net()
