"""Metrics by an import path, tried with outputs and targets of two samples before a training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from workflow_lib import plugins, tasks
from workflow_lib.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from workflow_lib.config.measures import Metric
    from workflow_lib.data import ModelSpec
    from workflow_lib.plan import RunConfig
    from workflow_lib.plan.model_check import Shapes


def problems(run: RunConfig, shapes: Shapes | None) -> Iterator[str]:
    """Yield the problems of the run's metrics by a path with the shapes of the data; none if these are not known."""
    own = [metric for metric in run.training.metrics if plugins.is_object_path(metric.name)]
    if not own or shapes is None or not shapes.outputs or run.training.step or plugins.is_object_path(shapes.spec.task):
        return
    for metric in own:
        if (what := problem(metric, shapes.spec)) is not None:
            yield what


def problem(section: Metric, spec: ModelSpec) -> str | None:
    """Return why the metric cannot be updated with two outputs of the task and their targets, or None.

    Only errors of types and shapes count: a value of few samples may be undefined, and functions of a whole split are
    not called.
    """
    import torch

    from workflow_lib.metrics.own import Measures

    _, shape = tasks.load(spec.task).probe(spec)
    outputs = torch.linspace(0.1, 0.9, math.prod(shape)).view(shape)
    try:
        measures = Measures([section], spec)
        measures.add(measures.contribution(outputs, made_up_targets(plugins.task_facts(spec.task).targets, shape)))
    except ConfigError as error:
        is_certain = error.__cause__ is None or isinstance(error.__cause__, TypeError | ValueError | RuntimeError)
        return str(error) if is_certain else None
    return None


def made_up_targets(kind: str, shape: Sequence[int]) -> Tensor:
    """Return targets for outputs of this shape: the classes 0 and 1 in turn, or numbers above 0."""
    import torch

    if kind == "numbers":
        return torch.linspace(0.2, 0.8, math.prod(shape)).view(*shape)
    if kind == "labels":
        return (torch.arange(math.prod(shape)) % 2).to(torch.uint8).view(*shape)
    *places, outputs = shape if kind == "tokens" else (shape[0], *shape[2:], shape[1])
    return (torch.arange(math.prod(places)) % min(2, outputs)).view(places)
