"""`model.init`: which weights are trained, and how fast. Patterns are globs over the names of the model's weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from workflow_lib.plugins import Section


class Init(Section):
    """Weights that are frozen, and those with a learning rate or decay of their own. `*` also matches dots."""

    freeze: list[str] = Field(
        [],
        description="patterns of weights and buffers that are not trained and stay as they are; a module of which all"
        " match computes as in validation",
        examples=[["encoder.*"]],
    )
    lr_scale: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="pattern of weights: factor of their learning rate; 1 for all others",
        examples=[{"encoder.*": 0.1}],
    )
    weight_decay: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {},
        description="pattern of weights: their weight decay; optimizer.weight_decay for all others",
        examples=[{"*.bias": 0.0}],
    )
