"""Fully connected layers for rows of a table, with a learned embedding for each category."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from workflow_lib.errors import ConfigError
from workflow_lib.plugins import Inputs, Section

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.data import ModelSpec

TAKES: tuple[Inputs, ...] = ("tables",)


class Params(Section):
    """Sizes of the layers, activation and dropout."""

    embedding: int = Field(8, ge=1, le=1_000_000, description="numbers that stand for a category")
    hidden: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field(
        (128, 64), description="units of each hidden layer"
    )
    activation: Literal["relu", "gelu", "silu", "tanh"] = Field("relu", description="after each hidden layer")
    dropout: float = Field(0.0, ge=0, lt=1, description="part of the hidden units dropped in training")


def build(params: Params, spec: ModelSpec) -> nn.Module:
    """Return the model: float32 [B, features], categories as codes, to [B, outputs].

    A code that is no category of the feature, or is missing, counts as `unknown`, which has an embedding, too. Weights
    are drawn from torch's global generator.
    """
    import torch
    from torch import Tensor, nn

    if len(spec.input_shape) != 1 or spec.task == "language":
        raise ConfigError(
            f"model.name: tabular needs the rows of a table; the data has inputs {spec.input_shape} for {spec.task}"
        )
    categories = spec.categories or (0,) * spec.input_shape[0]
    coded = [feature for feature, count in enumerate(categories) if count]
    numeric = [feature for feature, count in enumerate(categories) if not count]
    counts = [categories[feature] for feature in coded]
    activation = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}[params.activation]

    class Net(nn.Module):
        """All categories share one embedding table; the rows of a feature follow the row of its `unknown`."""

        coded: Tensor
        numeric: Tensor
        counts: Tensor
        starts: Tensor

        def __init__(self) -> None:
            super().__init__()
            starts = [sum(counts[:place]) + place for place in range(len(counts))]
            for name, values in (("coded", coded), ("numeric", numeric), ("counts", counts), ("starts", starts)):
                self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)
            self.embed = nn.Embedding(sum(counts) + len(counts), params.embedding) if coded else None
            sizes = (len(numeric) + len(coded) * params.embedding, *params.hidden)
            layers: list[nn.Module] = []
            for inner, outer in zip(sizes, sizes[1:], strict=False):
                layers += [nn.Linear(inner, outer), activation()]
                if params.dropout:
                    layers.append(nn.Dropout(params.dropout))
            self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], spec.outputs))

        def forward(self, inputs: Tensor) -> Tensor:
            if self.embed is None:
                return self.layers(inputs)
            codes = inputs.index_select(1, self.coded)
            is_known = (codes >= 0) & (codes < self.counts)  # false of NaN, too
            places = torch.where(is_known, codes, -1.0).to(torch.int64) + 1 + self.starts
            features = (inputs.index_select(1, self.numeric), self.embed(places).flatten(1))
            return self.layers(torch.cat(features, 1))

    return Net()
