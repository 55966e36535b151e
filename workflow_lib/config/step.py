"""The checks of a training step of one's own: its class and its arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import PydanticCustomError

from workflow_lib import plugins
from workflow_lib.config import sources
from workflow_lib.config.metrics import is_lower_better
from workflow_lib.plugins.objects import parameters

BASE = "workflow_lib.training.step.TrainingStep"  # found by its name: this package may not import it


def step_class(target: str) -> Any:
    """Return the class at `package.module:Name`. Raises PluginError if it is not a training step with its parts."""
    found = plugins.load_object("training step", target)
    bases = getattr(found, "__mro__", ())
    base: Any = next((base for base in bases if f"{base.__module__}.{base.__qualname__}" == BASE), None)
    if base is None:
        raise plugins.PluginError(f"{target} is not a class derived from workflow_lib.TrainingStep")
    if found.step is base.step:
        raise plugins.PluginError(f"{target} needs a method `step(self, batch, context)`")
    if found.has_own_validation() and found.metrics.get("loss") != "lower":
        raise plugins.PluginError(f'{target}.metrics: needs "loss": "lower", which is the column val_loss')
    for name, better in found.metrics.items():
        if better == "lower" and not is_lower_better(f"val_{name}"):
            raise plugins.PluginError(f'{target}.metrics: "{name}" is higher for a better model in other trainings')
    return found


def checked_class(target: str) -> str:
    """Return the path of a step. A mistake becomes an error of settings."""
    try:
        step_class(target)
    except plugins.PluginError as error:
        raise PydanticCustomError("plugin", "{message}", {"message": str(error)}) from error
    return target


def checked_step(target: str, params: Mapping[str, Any], root: Path | None) -> dict[str, Any]:
    """Return the arguments of a step, with files relative to the project and an experiment file as the id of its run.

    A mistake becomes an error of settings.
    """
    found, paths = step_class(target), _path_arguments(target, params)
    if problem := plugins.argument_problem(found, params):
        raise PydanticCustomError("arguments", "{message}", {"message": f"{target}: {problem}"})
    return {**params, **{name: sources.resolved(value, root) for name, value in paths.items()}}


def file_arguments(target: str | None, params: Mapping[str, Any]) -> dict[str, Path]:
    """Return the arguments of a step that are files or folders: those of type `Path` that name no run."""
    paths = _path_arguments(target, params)
    return {name: Path(value) for name, value in paths.items() if not sources.is_run(value)}


def run_arguments(target: str | None, params: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments of a step that are ids of runs: the step gets the paths of their trained weights."""
    return {name: value for name, value in _path_arguments(target, params).items() if sources.is_run(value)}


def _path_arguments(target: str | None, params: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments whose type is `Path` in the signature of the step."""
    known = (parameters(step_class(target)) if target is not None else None) or {}
    return {
        name: str(value)
        for name, value in params.items()
        if name in known and value is not None and re.search(r"\bPath\b", str(known[name].annotation))
    }
