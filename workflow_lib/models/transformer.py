"""A decoder-only transformer like GPT-2 (Radford et al., 2019), which predicts the next token.

The length of the context comes from the data. Usual sizes; the parameters do not include the embeddings, which have
`width` parameters for each token of the vocabulary and each position of the context:

    layers  heads  width   parameters
    2       2      64      0.1 million   learns the form of a text in a minute on one core
    4       4      128     0.8 million
    6       6      384     10.6 million
    12      12     768     85 million    GPT-2 small
    12      13     832     100 million
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field, ValidationInfo, field_validator

from workflow_lib.errors import ConfigError
from workflow_lib.plugins import Inputs, Section

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.data import ModelSpec

STD = 0.02  # of first weights, as in GPT-2
TAKES: tuple[Inputs, ...] = ("texts",)


class Params(Section):
    """Sizes, dropout and weight tying."""

    layers: int = Field(4, ge=1, le=10_000, description="blocks, one after the other")
    width: int = Field(128, ge=1, le=1_000_000, description="numbers that stand for a token")
    heads: int = Field(
        4, ge=1, le=1_000_000, description="parts of the width that attend by themselves; they must divide it"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="part of the numbers dropped in training, in four places")
    tied: bool = Field(True, description="a token is recognised by the numbers that stand for it")

    @field_validator("heads", mode="after")
    @classmethod
    def _divides_the_width(cls, heads: int, info: ValidationInfo) -> int:
        width = info.data.get("width", heads)
        if width % heads:
            allowed = ", ".join(str(one) for one in range(1, width + 1) if width % one == 0)
            raise ValueError(f"{heads} heads do not divide width={width}; allowed: {allowed}")
        return heads


def build(params: Params, spec: ModelSpec) -> nn.Module:
    """Return the model: int64 tokens [B, T] to logits [B, T, outputs]; weights by torch's global generator."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    if spec.task != "language":
        raise ConfigError(f"model.name: transformer continues texts; the task of the data is {spec.task}")
    width, heads = params.width, params.heads
    (context,) = spec.input_shape

    class Attention(nn.Module):
        """Causal self-attention: each position attends to itself and to those before it."""

        def __init__(self) -> None:
            super().__init__()
            self.inward = nn.Linear(width, 3 * width)
            self.outward = nn.Linear(width, width)

        def forward(self, inputs: Tensor) -> Tensor:
            query, key, value = self.inward(inputs).unflatten(2, (3, heads, width // heads)).permute(2, 0, 3, 1, 4)
            dropout = params.dropout if self.training else 0.0
            seen = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
            return self.outward(seen.transpose(1, 2).flatten(2))

    class Block(nn.Module):
        """Attention, then two layers for each position; both are residual, and normalise their inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.before_attention, self.attention = nn.LayerNorm(width), Attention()
            self.before_layers = nn.LayerNorm(width)
            self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            self.drop = nn.Dropout(params.dropout)

        def forward(self, inputs: Tensor) -> Tensor:
            inputs = inputs + self.drop(self.attention(self.before_attention(inputs)))
            return inputs + self.drop(self.layers(self.before_layers(inputs)))

    class Net(nn.Module):
        """Embeddings of tokens and positions, blocks, normalisation, logits."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(spec.outputs, width), nn.Embedding(context, width)
            self.drop = nn.Dropout(params.dropout)
            self.blocks = nn.ModuleList(Block() for _ in range(params.layers))
            self.norm = nn.LayerNorm(width)
            self.head = None if params.tied else nn.Linear(width, spec.outputs, bias=False)

        def forward(self, tokens: Tensor) -> Tensor:
            places = self.places(torch.arange(tokens.shape[1], device=tokens.device))
            features = self.drop(self.tokens(tokens) + places)
            for block in self.blocks:
                features = block(features)
            features = self.norm(features)
            return functional.linear(features, self.tokens.weight) if self.head is None else self.head(features)

    network = Net()
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            # as in GPT-2: what blocks add starts smaller for more blocks, so that their sum has the same scale
            is_added = name.endswith(("outward.weight", "layers.2.weight"))
            nn.init.normal_(parameter, std=STD / math.sqrt(2 * params.layers) if is_added else STD)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return network
