"""Settings that name a class or function of the user, `package.module:Name`, and the checks of their arguments."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from workflow_lib import plugins
from workflow_lib.plugins.objects import parameters

BY_PATH = "package.module:Name"  # stands for every import path where the names of a setting are listed
PATTERN = r"^\w+(\.\w+)*:\w+(\.\w+)*$"


def loaded(kind: str, target: str) -> Any:
    """Return the class or function at the path; a failure becomes an error of the setting that names it."""
    try:
        return plugins.load_object(kind, target)
    except plugins.PluginError as error:
        raise PydanticCustomError("plugin", "{message}", {"message": str(error)}) from error


def check_arguments(target: str, found: Any, given: Mapping[str, Any], provided: Collection[str] = ()) -> None:
    """Raise an error of the setting unless the class or function at the path can be called with these parameters."""
    if problem := plugins.argument_problem(found, given, provided):
        raise PydanticCustomError("arguments", "{message}", {"message": f"{target}: {problem}"})


def first_arguments(found: Any, count: int) -> list[str]:
    """Return the names of the first arguments of a function, which Everstep passes by their position."""
    return list(parameters(found) or {})[:count]


def takes(found: Any, name: str) -> bool:
    """Return True if the class or function has an argument of this name, or takes any."""
    known = parameters(found) or {}
    return name in known or any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())


def check_loss(target: str, params: Mapping[str, Any]) -> None:
    """Check a loss: a function `(outputs, targets, **params)`, or a class that is called with outputs and targets."""
    found = loaded("loss", target)
    check_arguments(target, found, params, () if inspect.isclass(found) else first_arguments(found, 2))


def check_optimizer(target: str, params: Mapping[str, Any], weight_decay: float | None) -> None:
    """Check an optimizer: a class `(parameters, lr, ..., **params)` whose `step` needs no closure."""
    found = loaded("optimizer", target)
    if not takes(found, "lr"):
        message = f"{target} has no argument `lr`, the learning rate, which the schedule sets"
        raise PydanticCustomError("arguments", "{message}", {"message": message})
    if weight_decay is not None and not takes(found, "weight_decay"):
        message = f"{target} has no argument `weight_decay`; leave optimizer.weight_decay out"
        raise PydanticCustomError("arguments", "{message}", {"message": message})
    step = parameters(getattr(found, "step", None)) or {}
    if any(name == "closure" and each.default is inspect.Parameter.empty for name, each in step.items()):
        message = (
            f"{target} computes the loss several times in a step, by a closure, and Everstep computes it once; "
            f"allowed: an optimizer whose step() needs no closure"
        )
        raise PydanticCustomError("arguments", "{message}", {"message": message})
    check_arguments(target, found, params, {*first_arguments(found, 1), "lr", "weight_decay"})


def check_schedule(target: str, params: Mapping[str, Any]) -> None:
    """Check a schedule: a function `(step, total_steps, **params)` that returns the factor of the learning rate."""
    found = loaded("schedule", target)
    if inspect.isclass(found):
        message = (
            f"{target} is a class; a schedule is a function (step, total_steps, **params) that returns the factor of "
            f"optimizer.lr, so that a resume needs no state of it (as for torch's LambdaLR)"
        )
        raise PydanticCustomError("arguments", "{message}", {"message": message})
    check_arguments(target, found, params, first_arguments(found, 2))
    try:
        with plugins.user_code_errors(target):
            factor = found(0, 100, **params)
    except plugins.PluginError as error:
        raise PydanticCustomError("arguments", "{message}", {"message": str(error)}) from error
    if what := factor_problem(factor):
        raise PydanticCustomError("arguments", "{message}", {"message": f"{target} returns {what} for step 0 of 100"})


def factor_problem(factor: Any) -> str | None:
    """Return what is wrong with a factor that a schedule returned, or None."""
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        return f"a {type(factor).__name__}, not a number,"
    return None if math.isfinite(factor) and factor >= 0 else f"{factor}, which is no finite number of at least 0,"
