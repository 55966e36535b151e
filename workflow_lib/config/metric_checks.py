"""Checks of the names of metrics, and of `training.metrics`, with the task of the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from workflow_lib import plugins
from workflow_lib.config.measures import KNOWN, OWN_LOSS, names_for
from workflow_lib.config.step import step_class
from workflow_lib.config.yaml import KeyPath
from workflow_lib.text import joined, nearest

if TYPE_CHECKING:
    from workflow_lib.config.run import Training


def measured(training: Training, task: plugins.Task) -> list[str]:
    """Return the metrics that every validation has: of the task and `training.metrics`, or of a step that validates."""
    if training.step is not None and (step := step_class(training.step)).has_own_validation():
        return ["train_loss", *(f"val_{name}" for name in step.metrics)]
    return [*plugins.task_facts(task).curves, *(metric.curve for metric in training.metrics)]


def metric_problem(metric: str, task: plugins.Task, training: Training) -> str | None:
    """Return the problem of a metric that chooses epochs or trials, or None if every validation has it."""
    every = measured(training, task)
    if metric in every:
        return None
    names = names_for(plugins.task_facts(task).targets)
    rejected = {own.curve for own in training.metrics if own.name in KNOWN and own.name not in names}
    allowed = [name for name in every if name not in rejected]
    more = "" if training.metrics or training.step else "; training.metrics adds more"
    problem = f"{metric} is not measured in {task}{nearest(metric, allowed)}"
    return joined(problem, f"allowed: {', '.join(allowed)}{more}")


def own_metric_problems(training: Training, task: plugins.Task) -> Iterator[tuple[KeyPath, str]]:
    """Yield the problems of `training.metrics` with the task, the loss and the training step."""
    facts = plugins.task_facts(task)
    if training.metrics and training.step is not None and step_class(training.step).has_own_validation():
        yield (
            ("training", "metrics"),
            f"do not apply to training.step={training.step}, which validates by itself and gives no outputs to measure;"
            " return these metrics from its validate(), or leave training.metrics out",
        )
        return
    names = names_for(facts.targets)
    for index, metric in enumerate(training.metrics):
        if metric.name in KNOWN and metric.name not in names:
            yield (
                ("training", "metrics", index),
                f"{metric.name} is not for {task}; allowed: {', '.join(names)}, or an import path",
            )
        elif (
            metric.curve in facts.curves
            or (metric.label in facts.metrics and metric.name not in KNOWN)
            or (metric.label == OWN_LOSS and training.loss is not None)
        ):
            yield (
                ("training", "metrics", index),
                f"{task} has a metric `{metric.label}` already; leave this one out, or give it a `label` of its own",
            )
