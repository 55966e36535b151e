"""The section `tracking`: copies of the trainings for TensorBoard, MLflow and W&B."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from workflow_lib import plugins
from workflow_lib.config.run import YEAR_S
from workflow_lib.plugins import Section
from workflow_lib.plugins.section import ADDED, NOT_IDENTITY, reject_unused

MOST_IMAGES = 16

if TYPE_CHECKING:
    Tracker = str
else:  # the names are those of the files in workflow_lib/trackers
    Tracker = Literal[tuple(plugins.available("trackers"))]


class WandB(Section):
    """Where W&B keeps the runs."""

    project: str | None = Field(None, min_length=1, max_length=128, description="project; null: the experiment's name")
    entity: str | None = Field(None, min_length=1, description="user or team; null: the default of the account")
    mode: Literal["offline", "online"] = Field(
        "offline",
        description="offline writes files that `wandb sync` uploads; online uploads them at once, with the key of"
        " `wandb login` or WANDB_API_KEY",
    )


class Tracking(Section):
    """Copies of the training curves for other tools, written by a separate process."""

    to: list[Tracker] = Field([], description="tools to copy to; each is an extra of the package")
    folder: Path = Field(Path("tracking"), description="folder of the copies, shared by all experiments")
    every_s: float = Field(
        10.0,
        gt=0,
        le=YEAR_S,
        description="seconds between updates with --follow",
        json_schema_extra=NOT_IDENTITY,
    )
    wandb: WandB = Field(default_factory=WandB, json_schema_extra=ADDED)
    every_steps: int | None = Field(
        None,
        ge=1,
        description="optimizer steps from one record of gradients, weights and images to the next; null records none",
        json_schema_extra=ADDED,
    )
    images: int = Field(
        4,
        ge=0,
        le=MOST_IMAGES,
        description="training images, and validation images with their predictions, in each record",
        json_schema_extra=ADDED,
    )

    @model_validator(mode="after")
    def _images_are_recorded(self) -> Self:
        if self.every_steps is None:
            reject_unused(self, ["images"], "tracking.every_steps")
        return self
