"""The facts of each task, for validation, plans and the summary; they need no torch, numpy or pydantic.

A task is one file, a module of workflow_lib.tasks; its `TASK` has these facts and, beside them, the code of the task.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from workflow_lib.errors import ConfigError

Task: TypeAlias = str  # the name of a task
Targets = Literal["classes", "numbers", "tokens"]


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """Facts of a task that are known before any data is read.

    targets       how data stores the targets: `classes`, int64 numbers of classes [n]; `numbers`, float32 [n, outputs],
                  which training standardises; `tokens`, none, because each token of the inputs has the next as target
    metrics       metrics of the test split with their labels in the report, the most important first
    curve         name and label of the validation metric beside the loss; its column is `val_<name>`
    larger_is_better  True if a larger value of `curve` is better
    study_metric  default metric of a study
    settings      settings of `training` that this task uses and some other task does not
    """

    targets: Targets
    metrics: Mapping[str, str]
    curve: tuple[str, str]
    larger_is_better: bool = False
    study_metric: str = "val_loss"
    settings: tuple[str, ...] = ()

    @property
    def curves(self) -> tuple[str, ...]:
        """The metrics of each epoch, in the order of their columns."""
        return "train_loss", "val_loss", f"val_{self.curve[0]}"


@cache
def names() -> list[Task]:
    """Return the names of the tasks, sorted: the modules beside this one."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in found if name != Path(__file__).stem)


@cache
def task_facts(name: Task) -> TaskFacts:
    """Return the facts of a task. Raises ConfigError if there is no such task, or if its file lacks `TASK`."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise ConfigError(f"no task `{name}`{hint} (there are: {', '.join(names())})")
    module = importlib.import_module(f"workflow_lib.tasks.{name}")
    facts = getattr(module, "TASK", None)
    if not isinstance(facts, TaskFacts):
        raise ConfigError(f"{module.__file__}: needs `TASK = Task(...)` of workflow_lib.tasks")
    return facts


@cache
def all_facts() -> dict[Task, TaskFacts]:
    """Return the facts of every task by name, sorted."""
    return {name: task_facts(name) for name in names()}
