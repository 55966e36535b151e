"""A transformer that reads a whole text and gives it one answer, such as a class.

Each position attends to all others but the filled end of the text (token 0); the mean over the text goes to a linear
layer. The longest text comes from the data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, ValidationInfo, field_validator

from workflow_lib.errors import ConfigError
from workflow_lib.plugins import Answers, Inputs, Section

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.data import ModelSpec

STD = 0.02  # of first weights
PAD = 0
TAKES: tuple[Inputs, ...] = ("texts",)
GIVES: tuple[Answers, ...] = ("sample",)


class Params(Section):
    """Sizes and dropout."""

    layers: int = Field(2, ge=1, le=10_000, description="blocks, one after the other")
    width: int = Field(64, ge=1, le=1_000_000, description="numbers that stand for a token")
    heads: int = Field(
        4, ge=1, le=1_000_000, description="parts of the width that attend by themselves; they must divide it"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="part of the numbers dropped in training, in four places")

    @field_validator("heads", mode="after")
    @classmethod
    def _divides_the_width(cls, heads: int, info: ValidationInfo) -> int:
        width = info.data.get("width", heads)
        if width % heads:
            allowed = ", ".join(str(count) for count in range(1, width + 1) if width % count == 0)
            raise ValueError(f"{heads} heads do not divide width={width}; allowed: {allowed}")
        return heads


def build(params: Params, spec: ModelSpec) -> nn.Module:
    """Return the model: int64 tokens [B, T] to [B, outputs]. Weights are drawn from torch's global generator."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    if not spec.vocabulary or spec.task == "language":
        raise ConfigError(
            f"model.name: text_encoder needs texts with one answer each; the data has inputs {spec.input_shape} for "
            f"{spec.task}"
        )
    width, heads = params.width, params.heads
    (length,) = spec.input_shape

    class Attention(nn.Module):
        """Self-attention to every position where `is_text` [B, 1, 1, T] is true."""

        def __init__(self) -> None:
            super().__init__()
            self.inward = nn.Linear(width, 3 * width)
            self.outward = nn.Linear(width, width)

        def forward(self, inputs: Tensor, is_text: Tensor) -> Tensor:
            query, key, value = self.inward(inputs).unflatten(2, (3, heads, width // heads)).permute(2, 0, 3, 1, 4)
            dropout = params.dropout if self.training else 0.0
            seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=is_text, dropout_p=dropout)
            return self.outward(seen.transpose(1, 2).flatten(2))

    class Block(nn.Module):
        """Attention, then two layers for each position; both are residual, and normalise their inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.before_attention, self.attention = nn.LayerNorm(width), Attention()
            self.before_layers = nn.LayerNorm(width)
            self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            self.drop = nn.Dropout(params.dropout)

        def forward(self, inputs: Tensor, is_text: Tensor) -> Tensor:
            inputs = inputs + self.drop(self.attention(self.before_attention(inputs), is_text))
            return inputs + self.drop(self.layers(self.before_layers(inputs)))

    class Net(nn.Module):
        """Embeddings of tokens and positions, blocks, normalisation, mean over the text, one linear layer."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(spec.vocabulary, width), nn.Embedding(length, width)
            self.drop = nn.Dropout(params.dropout)
            self.blocks = nn.ModuleList(Block() for _ in range(params.layers))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, spec.outputs)

        def forward(self, tokens: Tensor) -> Tensor:
            is_text = tokens != PAD
            features = self.drop(self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device)))
            for block in self.blocks:
                features = block(features, is_text[:, None, None, :])
            weights = is_text[:, :, None].to(features.dtype)
            return self.head((self.norm(features) * weights).sum(1) / weights.sum(1).clamp_min(1.0))

    network = Net()
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1 and not name.startswith("head"):
            nn.init.normal_(parameter, std=STD)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return network
