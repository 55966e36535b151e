"""Metrics of `training.metrics`, tried with made-up outputs and targets before a training.

Those by an import path are tried, and short names with arguments. If the number of classes is not known yet, a metric
is rejected if it fails for each of several numbers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from workflow_lib import plugins, tasks
from workflow_lib.config.step import step_class
from workflow_lib.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from workflow_lib.config.measures import Metric
    from workflow_lib.config.run import Training
    from workflow_lib.data import ModelSpec
    from workflow_lib.plan import RunConfig
    from workflow_lib.plan.model_check import Shapes

LENGTH = 8  # tokens of a text that is not read
ANY_OUTPUTS = (2, 3, 10, 100)  # numbers of classes to try if the data has not been read
MOST_OUTPUTS = 1000
MOST_NUMBERS = 1 << 22  # of the outputs that are made up
OF_CODE = (TypeError, AttributeError, NameError, ImportError)  # errors whatever the outputs are


def problems(run: RunConfig, shapes: Shapes | None, inputs: str | None) -> Iterator[tuple[str, bool]]:
    """Yield what is wrong with the run's metrics, and True if it is certain.

    `inputs` is the kind of the data's inputs. Nothing is yielded if the shapes of the outputs are not known.
    """
    training = run.training
    tried = [metric for metric in training.metrics if plugins.is_object_path(metric.name) or metric.params]
    if not tried or (training.step is not None and step_class(training.step).has_own_validation()):
        return
    for metric in tried:
        found = [problem(metric, spec, training) for spec in _specs(run, shapes, inputs, metric)]
        if found and None not in found:
            error = next(each for each in found if each is not None)
            yield str(error), _is_certain(error, metric, outputs_are_known=len(found) == 1)


def _specs(run: RunConfig, shapes: Shapes | None, inputs: str | None, metric: Metric) -> list[ModelSpec]:
    """Return the shapes to try a metric with: those of the data, or of several numbers of classes; none without inputs.

    The numbers in the metric's arguments are among those of the classes: it may need as many.
    """
    from workflow_lib.data import ModelSpec

    if shapes is not None and shapes.outputs:
        return [shapes.spec]
    given = {value for value in metric.params.values() if isinstance(value, int) and 2 <= value <= MOST_OUTPUTS}
    numbers = sorted({*ANY_OUTPUTS, *given})
    if shapes is not None:
        return [replace(shapes.spec, outputs=number) for number in numbers]
    if inputs != "texts":
        return []
    task = plugins.task(run.data.name, run.data.params)
    return [ModelSpec((LENGTH,), number, task, vocabulary=number) for number in numbers]


def _is_certain(error: ConfigError, metric: Metric, *, outputs_are_known: bool) -> bool:
    """Return True if real samples would give the error, too.

    Code of the user may reject made-up values by a ValueError, or another number of classes by any error.
    """
    cause = error.__cause__
    if cause is None or isinstance(cause, OF_CODE):
        return True
    of_shapes = (RuntimeError, ValueError) if metric.is_of_torchmetrics else (RuntimeError,)
    return isinstance(cause, of_shapes) and (outputs_are_known or metric.is_of_torchmetrics)


def problem(section: Metric, spec: ModelSpec, training: Training) -> ConfigError | None:
    """Return why the metric cannot be computed for outputs of the task and their targets, or None.

    A value that is not finite is no reason: few samples may have no other.
    """
    from workflow_lib.metrics.own import Measures

    if (pair := _made_up(spec, training)) is None:
        return None
    try:
        measures = Measures([section], spec)
        measures.add(measures.contribution(*pair))
        measures.values()
    except ConfigError as error:
        return error
    return None


def _made_up(spec: ModelSpec, training: Training) -> tuple[Tensor, Tensor] | None:
    """Return outputs of a model, and what they are compared with; None if the user's task does not take made-up data.

    Each class is the target of several samples or pixels, and numbers are above 0.
    """
    import torch

    task = tasks.load(spec.task)
    with contextlib.suppress(Exception):  # of the user's code; a training tells it
        probe, (_, *shape) = task.probe(spec)
        samples = max(2, min(4 * spec.outputs, MOST_NUMBERS // math.prod(shape)))
        outputs = torch.rand((samples, *shape), generator=torch.Generator().manual_seed(0))
        if task.targets == "tokens":  # the objective takes the targets from the inputs, which have one token more
            inputs = (torch.arange(samples * (len(probe[0]) + 1)) % spec.outputs).view(samples, -1)
            stored = torch.empty((samples, 0), dtype=torch.int64)
        else:
            inputs = probe[:1].expand(samples, *probe.shape[1:])
            stored = made_up_targets(task.targets, outputs.shape)
        objective = task.objective(training, torch.device("cpu"), [1] * spec.outputs, [1.0] * spec.outputs)
        return outputs, objective.parts(inputs, stored)[1]
    return None


def made_up_targets(kind: str, shape: Sequence[int]) -> Tensor:
    """Return targets for outputs of this shape: the classes in turn, or numbers above 0."""
    import torch

    if kind == "numbers":
        return torch.linspace(0.2, 0.8, math.prod(shape)).view(*shape)
    if kind == "labels":
        return (torch.arange(math.prod(shape)) % 2).to(torch.uint8).view(*shape)
    *places, outputs = shape if kind == "tokens" else (shape[0], *shape[2:], shape[1])
    return (torch.arange(math.prod(places)) % outputs).view(places)
