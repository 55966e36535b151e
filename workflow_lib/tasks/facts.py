"""The facts of a task, for validation, plans and the summary; they need no torch, numpy or pydantic.

A task is one file, a module of workflow_lib.tasks, or an object of the user's project; its `TASK` has these facts and,
beside them, the code of the task. `plugins.task_facts` finds it by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Task: TypeAlias = str  # the name of a task, or its import path `package.module:TASK`
Targets = Literal["classes", "labels", "numbers", "masks", "tokens"]
Answers = Literal["sample", "token", "pixel"]
SHARE = (0.0, 1.0)  # range of a metric
POSITIVE = (0.0, math.inf)


@dataclass(frozen=True)
class Averaging:
    """The mean of the probabilities of several outputs for a sample, which `evaluate.tta` takes.

    log_shares   returns the logarithms of the probabilities of outputs [B, ...], as many as are needed for the inverse
    outputs      returns outputs with these probabilities, from their logarithms
    """

    log_shares: Callable[[Tensor], Tensor]
    outputs: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """Facts of a task that are known before any data is read.

    targets       how data stores the targets: `classes`, int64 numbers of classes [n]; `labels`, uint8 [n, classes], 1
                  for each class that a sample has; `numbers`, float32 [n, outputs], which training standardises;
                  `masks`, uint8 numbers of classes [n, height, width], read with the inputs; `tokens`, none, because
                  each token of the inputs has the next as target
    metrics       metrics of the test split with their labels in the report, the most important first
    curve         name and label of the validation metric beside the loss; its column is `val_<name>`
    larger_is_better  True if a larger value of `curve` is better
    study_metric  default metric of a study
    settings      settings of `training` that this task uses and some other task does not
    answers       what a model gives an answer for: each sample, each token, or each pixel
    averaging     the mean of several outputs for a sample; None: it has no probabilities
    ranges        smallest and largest possible value of a metric, and of the task's own `loss`, to which intervals of
                  its mean are cut
    """

    targets: Targets
    metrics: Mapping[str, str]
    curve: tuple[str, str]
    larger_is_better: bool = False
    study_metric: str = "val_loss"
    settings: tuple[str, ...] = ()
    answers: Answers = "sample"
    averaging: Averaging | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def curves(self) -> tuple[str, ...]:
        """The metrics of each epoch, in the order of their columns."""
        return "train_loss", "val_loss", f"val_{self.curve[0]}"
