"""`registry:`, the registry that gets the best model of the experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from workflow_lib import plugins
from workflow_lib.plugins import Section
from workflow_lib.text import nearest

# metrics of the test split of which a smaller value is better; of the other ones of the tasks, a larger one
SMALLER_IS_BETTER = frozenset({"log_loss", "loss", "mae", "perplexity", "rmse"})

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
NAME_ALLOWED: dict[str, Any] = {
    "allowed": "1 to 64 letters, digits, `_`, `.` and `-`; the first must be a letter or a digit"
}


class Registry(Section):
    """The best model in a registry, and its promotion if it is better than the one there (docs/registry.md)."""

    name: str = Field(
        pattern=NAME,
        description="name of the model in the registry",
        examples=["my-model"],
        json_schema_extra=NAME_ALLOWED,
    )
    folder: Path = Field(Path("registry"), description="folder of the registry, shared by all experiments")
    alias: str = Field(
        "champion",
        pattern=r"^[a-z][a-z0-9_-]{0,63}$",
        description="alias that the model gets if it is better than the one that has it, by more than noise",
        json_schema_extra={"allowed": "1 to 64 small letters, digits, `_` and `-`; the first must be a letter"},
    )
    metric: str | None = Field(
        None, description="metric of the test split that decides; null takes the first one of the task's curves"
    )
    mlflow: bool = Field(
        False, description="also register in MLflow's registry, in the database of tracking.folder; needs the extra"
    )

    @field_validator("metric", mode="after")
    @classmethod
    def _check_metric(cls, value: str | None) -> str | None:
        names = sorted({name for task in plugins.all_facts().values() for name in task.metrics})
        if value is not None and value not in names:
            message = f"{value!r} is no metric of the test split{nearest(value, names)}; allowed: {', '.join(names)}"
            raise PydanticCustomError("arguments", "{message}", {"message": message})
        return value


def is_larger_better(metric: str) -> bool:
    """Return True if a larger value of a metric of the test split is better."""
    return metric not in SMALLER_IS_BETTER
