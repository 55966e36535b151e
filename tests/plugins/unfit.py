"""Models of a user that do not fit their data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from workflow_lib.plugins import Section


class Params(Section):
    """The fault of the model."""

    kind: Literal["wide", "scores", "frozen", "none"] = Field(description="what is wrong with it")


def build(params: Params, spec: Any) -> Any:
    from torch import nn

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 10)

        def forward(self, inputs: Any) -> Any:
            outputs = self.inner(inputs.flatten(1))
            return {"scores": outputs}

    if params.kind == "none":
        return None
    if params.kind == "scores":
        return Scores()
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 11 if params.kind == "wide" else 10))
    return network.requires_grad_(params.kind != "frozen")
