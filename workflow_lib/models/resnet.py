"""Residual networks of basic blocks (He et al., 2015), for images of any size.

    size    blocks of each stage   channels of the first   parameters, 3 channels and 10 classes
    small   2, 2, 2                32                      0.7 million
    18      2, 2, 2, 2             64                      11.2 million

Each stage after the first halves the image and doubles the channels. The stem before them is one convolution of 3x3
pixels for small images; for large ones, a convolution of 7x7 and a pooling, which each halve the image.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workflow_lib.errors import ConfigError
from workflow_lib.plugins import Inputs, Section

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.data import ModelSpec

BLOCKS = {"small": (2, 2, 2), "18": (2, 2, 2, 2)}
WIDTHS = {"small": 32, "18": 64}
SMALL = 64  # pixels: up to here `stem: auto` keeps the resolution
TAKES: tuple[Inputs, ...] = ("images",)


class Params(Section):
    """Depth, width and normalisation."""

    size: Literal["small", "18"] = Field("small", description="number of layers: small has 14")
    width: int | None = Field(
        None, ge=1, le=1_000_000, description="channels of the first stage; null: 32 in small, 64 in 18"
    )
    norm: Literal["batch", "group"] = Field(
        "batch", description="over the batch, or, where few samples are computed at once, over groups of channels"
    )
    stem: Literal["auto", "small", "large"] = Field(
        "auto", description="large reduces the image to a quarter first; auto does so above 64 pixels"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="part of the features dropped before the last layer, in training"
    )


def build(params: Params, spec: ModelSpec) -> nn.Module:
    """Return the model: float32 [B, C, H, W] to [B, outputs]. Weights are drawn from torch's global generator."""
    from torch import Tensor, nn

    if len(spec.input_shape) != 3:
        raise ConfigError(
            f"model.name: resnet needs images (channels, height, width); the data has inputs {spec.input_shape}"
        )

    def norm(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if params.norm == "batch" else nn.GroupNorm(math.gcd(32, channels), channels)

    class Block(nn.Module):
        """Two convolutions, and a shortcut that adds the input."""

        def __init__(self, inner: int, outer: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
                norm(outer),
                nn.ReLU(),
                nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
                norm(outer),
            )
            self.skip: nn.Module = nn.Identity()
            if stride != 1 or inner != outer:
                self.skip = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), norm(outer))

        def forward(self, inputs: Tensor) -> Tensor:
            return nn.functional.relu(self.body(inputs) + self.skip(inputs))

    class Net(nn.Module):
        """Stem, blocks, mean over the image, one linear layer."""

        def __init__(self) -> None:
            super().__init__()
            channels, height, width = spec.input_shape
            outer = params.width or WIDTHS[params.size]
            is_large = params.stem == "large" or params.stem == "auto" and min(height, width) > SMALL
            first = (
                nn.Conv2d(channels, outer, 7, 2, 3, bias=False)
                if is_large
                else nn.Conv2d(channels, outer, 3, 1, 1, bias=False)
            )
            pool = (nn.MaxPool2d(3, 2, 1),) if is_large else ()
            self.stem = nn.Sequential(first, norm(outer), nn.ReLU(), *pool)
            self.blocks = nn.ModuleList()
            inner = outer
            for stage, count in enumerate(BLOCKS[params.size]):
                for number in range(count):
                    stride = 2 if stage and not number else 1
                    self.blocks.append(Block(inner, outer * 2**stage, stride))
                    inner = outer * 2**stage
            self.head = nn.Sequential(nn.Dropout(params.dropout), nn.Linear(inner, spec.outputs))

        def forward(self, inputs: Tensor) -> Tensor:
            features = self.stem(inputs)
            for block in self.blocks:
                features = block(features)
            return self.head(features.mean((2, 3)))

    network = Net()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
