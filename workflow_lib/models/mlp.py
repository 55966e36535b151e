"""Fully connected layers, for inputs of any shape."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from workflow_lib.errors import ConfigError
from workflow_lib.plugins import Inputs, Section

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.data import ModelSpec

TAKES: tuple[Inputs, ...] = ("images", "tables")


class Params(Section):
    """Sizes of the hidden layers, activation and dropout."""

    hidden: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field(
        (128, 64), description="units of each hidden layer"
    )
    activation: Literal["relu", "gelu", "silu", "tanh"] = Field("relu", description="after each hidden layer")
    dropout: float = Field(0.0, ge=0, lt=1, description="part of the hidden units dropped in training")


def build(params: Params, spec: ModelSpec) -> nn.Module:
    """Return the model: float32 [B, *input_shape] to [B, outputs]. Weights are drawn from torch's global generator."""
    from torch import nn

    if spec.task == "language":
        raise ConfigError("model.name: mlp gives one answer a sample, and a text needs one a token; use transformer")
    activation = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}[params.activation]
    sizes = (math.prod(spec.input_shape), *params.hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for inner, outer in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inner, outer), activation()]
        if params.dropout:
            layers.append(nn.Dropout(params.dropout))
    return nn.Sequential(*layers, nn.Linear(sizes[-1], spec.outputs))
