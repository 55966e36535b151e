"""A convolutional network for small images: one block for each number of channels, each halves the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from workflow_lib.errors import ConfigError
from workflow_lib.plugins import Inputs, Section

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.data import ModelSpec

TAKES: tuple[Inputs, ...] = ("images",)


class Params(Section):
    """Width and depth of the network."""

    channels: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field(
        (32, 64), min_length=1, description="channels of each block; a block halves height and width"
    )
    batch_norm: bool = Field(True, description="normalise after each convolution")
    dropout: float = Field(
        0.1, ge=0, lt=1, description="part of the features dropped before the last layer, in training"
    )


def build(params: Params, spec: ModelSpec) -> nn.Module:
    """Return the model: float32 [B, C, H, W] to [B, outputs]. Weights are drawn from torch's global generator."""
    from torch import nn

    channels, height, width = _image(params, spec)
    layers: list[nn.Module] = []
    for outer in params.channels:
        layers.append(nn.Conv2d(channels, outer, 3, padding=1, bias=not params.batch_norm))
        if params.batch_norm:
            layers.append(nn.BatchNorm2d(outer))
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        channels, height, width = outer, height // 2, width // 2
    head = (nn.Flatten(), nn.Dropout(params.dropout), nn.Linear(channels * height * width, spec.outputs))
    return nn.Sequential(*layers, *head)


def _image(params: Params, spec: ModelSpec) -> tuple[int, int, int]:
    """Return channels, height and width. Raises ConfigError if the image is too small for the blocks."""
    if len(spec.input_shape) != 3:
        raise ConfigError(
            f"model.name: cnn needs images (channels, height, width); the data has inputs {spec.input_shape}"
        )
    channels, height, width = spec.input_shape
    blocks, most = len(params.channels), min(height, width).bit_length() - 1
    if blocks > most:
        allowed = f"at most {most} fit" if most else "use another model"
        raise ConfigError(
            f"model.params.channels: {blocks} blocks halve an image of {height}x{width} to nothing; {allowed}"
        )
    return channels, height, width
