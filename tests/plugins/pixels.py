"""A small network with an answer for each pixel, with buffers and dropout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workflow_lib.plugins import Section

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.data import ModelSpec

TAKES = ("images",)
GIVES = ("pixel",)


class Params(Section):
    """No settings."""


def build(params: Params, spec: ModelSpec) -> nn.Module:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(spec.input_shape[0], 6, 3, 1, 1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(6, spec.outputs, 3, 1, 1),
    )
