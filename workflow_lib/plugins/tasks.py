"""Find a task: a file of workflow_lib.tasks by its name, or an object of the user by its import path."""

from __future__ import annotations

import difflib
import pkgutil
from functools import cache
from pathlib import Path

from workflow_lib.errors import shortened
from workflow_lib.plugins.loader import PluginError, import_module
from workflow_lib.plugins.objects import is_object_path
from workflow_lib.tasks.facts import Task, TaskFacts

NOT_TASKS = ("facts",)  # modules of workflow_lib.tasks that are no task
_users: dict[Task, TaskFacts] = {}  # tasks with an import path that this process has found


@cache
def task_names() -> list[Task]:
    """Return the names of the shipped tasks, sorted."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parents[1] / "tasks")]))
    return sorted(name for name in found if name not in NOT_TASKS)


@cache
def task_facts(name: Task) -> TaskFacts:
    """Return a task, or its facts, by name or import path. Raises PluginError if there is none."""
    if is_object_path(name):
        _users[name] = _user_task(name)
        return _users[name]
    if name not in task_names():
        near = difflib.get_close_matches(name, task_names(), 1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        there = ", ".join(task_names())
        raise PluginError(f"no task `{shortened(name)}`{hint} (there are: {there}; or an import path: mytasks:TASK)")
    module = import_module("task", name, f"workflow_lib.tasks.{name}")
    facts = getattr(module, "TASK", None)
    if not isinstance(facts, TaskFacts):
        raise PluginError(f"{module.__file__}: needs `TASK = Task(...)` of workflow_lib.tasks")
    return facts


def _user_task(path: str) -> TaskFacts:
    name, _, attribute = path.partition(":")
    module = import_module("task", name, name)
    found = getattr(module, attribute, None)
    if not isinstance(found, TaskFacts):
        what = "has no" if found is None else f"is a {type(found).__name__}:"
        raise PluginError(f"{module.__file__}: {what} `{attribute}`; task `{path}` needs a Task of workflow_lib.tasks")
    return found


def all_facts() -> dict[Task, TaskFacts]:
    """Return the facts of every shipped task by name, sorted, then those of the user's tasks found so far."""
    return {name: task_facts(name) for name in task_names()} | _users
