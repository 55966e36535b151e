"""`model.init`: the weights that a training starts from, which of them are trained, and how fast.

`from` names a run or a file. An experiment file stands for its only run: it is replaced by the run's id as soon as it
is read, so that stored settings never depend on a file that may be edited.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, create_model, field_validator

from workflow_lib.config import sources
from workflow_lib.plugins import Section

# `from` is a word of Python, so it cannot be declared as other settings are
_FROM: Any = {
    "from": (
        str | None,
        Field(
            None,
            description="weights to start from: an experiment file or the id of a run, which is then trained first,"
            " or a file or folder of weights (.safetensors, .pt); null draws them at random",
        ),
    )
}


class Init(create_model("_From", __base__=Section, **_FROM)):  # type: ignore[misc]
    """The initial weights: where they come from, which are frozen, and which have their own learning rate or decay."""

    map: dict[str, str | None] = Field(
        {},
        description="beginning of names in `from`: what replaces it in the names of the model; null leaves them out",
        examples=[{"encoder.": "backbone.", "head.": None}],
    )
    strict: bool = Field(
        True, description="true: `from` must have every weight of the model; false takes those that fit, and says which"
    )
    freeze: list[str] = Field(
        [],
        description="patterns of weights and buffers that are not trained and stay as they are (`*` also matches dots);"
        " a module of which all match computes as in validation",
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

    @property
    def source(self) -> str | None:
        """The setting `from`."""
        value: str | None = getattr(self, "from")
        return value

    @property
    def run(self) -> str | None:
        """The id of the run that the weights come from, or None."""
        return self.source if sources.is_run(self.source) else None

    @property
    def file(self) -> Path | None:
        """The file or folder that the weights come from, or None."""
        return Path(self.source) if self.source is not None and self.run is None else None

    @field_validator("from", mode="after")
    @classmethod
    def _resolve(cls, value: str | None, info: ValidationInfo) -> str | None:
        return None if value is None else sources.resolved(value, (info.context or {}).get("root"))
