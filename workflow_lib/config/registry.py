"""`registry:`, the registry that gets the best model of the experiment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from workflow_lib import plugins
from workflow_lib.config.measures import OWN_LOSS
from workflow_lib.plugins import Section
from workflow_lib.text import joined, nearest

if TYPE_CHECKING:
    from workflow_lib.config.run import Training

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
        None,
        description="metric of the test split that decides, also one of training.metrics; null takes the task's first",
    )
    mlflow: bool = Field(
        False, description="also register in MLflow's registry, in the database of tracking.folder; needs the extra"
    )


def deciding(task: plugins.Task, training: Training) -> list[str]:
    """Return the metrics of the test split that can decide on a promotion: those whose better direction is known.

    Of a task of the user, that is the metric of its curves only.
    """
    facts = plugins.task_facts(task)
    known = [name for name in facts.metrics if task in plugins.task_names() or name == facts.curve[0]]
    return [*known, *([] if training.loss is None else [OWN_LOSS]), *(metric.label for metric in training.metrics)]


def problem(registry: Registry, task: plugins.Task, training: Training) -> str | None:
    """Return the problem of the metric that decides, or None."""
    allowed = deciding(task, training)
    if registry.metric is None or registry.metric in allowed:
        return None
    problem = f"{registry.metric} is not measured on the test split in {task}{nearest(registry.metric, allowed)}"
    return joined(problem, f"allowed: {', '.join(allowed)}")


def is_larger_better(metric: str) -> bool:
    """Return True if a larger value of a metric of the test split is better."""
    return metric not in SMALLER_IS_BETTER
