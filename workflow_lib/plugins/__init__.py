"""Plugins: data sets, models and hooks in Python files, found by name and checked before use."""

import warnings
from typing import Any

from workflow_lib.plugins.contract import (
    DatasetFacts,
    accepted_inputs,
    answers,
    code,
    column_descriptions,
    facts,
    facts_in_headers,
    named_files,
    task,
)
from workflow_lib.plugins.loader import Inputs, PluginError, available, load, load_hooks, user_code_errors
from workflow_lib.plugins.objects import argument_problem, is_object_path, load_object, object_code
from workflow_lib.plugins.section import Section, in_identity
from workflow_lib.plugins.tasks import all_facts, task_facts, task_names
from workflow_lib.tasks.facts import Answers, Targets, Task, TaskFacts

__all__ = [
    "Answers",
    "DatasetFacts",
    "Inputs",
    "PluginError",
    "Section",
    "Targets",
    "Task",
    "TaskFacts",
    "accepted_inputs",
    "all_facts",
    "answers",
    "argument_problem",
    "available",
    "code",
    "column_descriptions",
    "facts",
    "facts_in_headers",
    "in_identity",
    "is_object_path",
    "load",
    "load_hooks",
    "load_object",
    "named_files",
    "object_code",
    "task",
    "task_facts",
    "task_names",
    "user_code_errors",
]

OLD_NAMES = {"Known": "DatasetFacts"}  # of version 0.1, removed in 0.3: user files import them


def __getattr__(name: str) -> Any:
    if name not in OLD_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = OLD_NAMES[name]
    warnings.warn(f"{__name__}.{name} is now {__name__}.{new}", DeprecationWarning, stacklevel=2)
    return globals()[new]
