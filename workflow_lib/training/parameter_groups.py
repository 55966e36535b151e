"""Weights that are frozen, and groups of weights with a learning rate or a weight decay of their own.

Patterns are globs over names of weights. A pattern that matches nothing is an error, and so are two patterns that give
one weight different values, since settings have no order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workflow_lib.errors import ConfigError

if TYPE_CHECKING:
    from workflow_lib.config.init import Init

NEAREST = 3  # names that a message lists

Groups = list[nn.Parameter] | list[dict[str, Any]]


def freeze(model: nn.Module, patterns: Iterable[str]) -> list[nn.Module]:
    """Stop the training of the weights that match, and return the outermost modules that are frozen as a whole.

    Such a module must stay in evaluation mode, so that its statistics do not change either: see `set_training`.
    """
    named = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    frozen = {id(named[name]) for pattern in patterns for name in _matching(pattern, named, "freeze")}
    for weight in model.parameters():
        if id(weight) in frozen:
            weight.requires_grad_(False)
    if frozen and not any(weight.requires_grad for weight in model.parameters()):
        raise ConfigError("model.init.freeze: no weight is left to train")
    return _frozen_modules(model, frozen)


def _frozen_modules(module: nn.Module, frozen: set[int]) -> list[nn.Module]:
    own = [*module.parameters(), *module.buffers()]
    if own and all(id(tensor) in frozen for tensor in own):
        return [module]
    return [found for child in module.children() for found in _frozen_modules(child, frozen)]


def set_training(model: nn.Module, frozen: Iterable[nn.Module]) -> None:
    """Set the model to training mode, except for the modules that are frozen as a whole."""
    model.train()
    for module in frozen:
        module.eval()


def parameter_groups(init: Init, named: Iterable[tuple[str, nn.Parameter]]) -> Groups:
    """Return the parameters, or a group of them for each combination of `lr_scale` and `weight_decay` of the settings.

    `named` has each trained parameter under each of its names. Groups and their parameters are in this order. A group
    without `weight_decay` has that of the optimizer.
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in named:
        names.setdefault(parameter, []).append(name)
    if not init.lr_scale and not init.weight_decay:
        return list(names)
    scales = _values(names, init.lr_scale, "lr_scale")
    decays = _values(names, init.weight_decay, "weight_decay")
    groups: dict[tuple[float, float | None], dict[str, Any]] = {}
    for parameter in names:
        scale, decay = scales.get(parameter, 1.0), decays.get(parameter)
        own = {} if decay is None else {"weight_decay": decay}
        group = groups.setdefault((scale, decay), {"params": [], "lr_scale": scale, **own})
        group["params"].append(parameter)
    return list(groups.values())


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of each group: that of the step, times the group's scale."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if "lr_scale" in group:
            group["lr"], group["unscaled_lr"] = learning_rate * group["lr_scale"], learning_rate


def learning_rate_of(optimizer: torch.optim.Optimizer) -> float:
    """Return the learning rate of the last step, without the scale of a group."""
    group = optimizer.param_groups[0]
    rate: float = group.get("unscaled_lr", group["lr"])
    return rate


def _values(
    names: Mapping[nn.Parameter, list[str]], patterns: Mapping[str, float], setting: str
) -> dict[nn.Parameter, float]:
    """Return the value of each parameter that a pattern matches."""
    found: dict[nn.Parameter, tuple[str, float]] = {}
    parameters = {name: parameter for parameter, own in names.items() for name in own}
    for pattern, value in patterns.items():
        for name in _matching(pattern, parameters, setting):
            other, before = found.setdefault(parameters[name], (pattern, value))
            if before != value:
                raise ConfigError(
                    f"model.init.{setting}: `{other}` gives {name} {before:g} and `{pattern}` gives it {value:g}; "
                    f"allowed: one value for a weight"
                )
    return {parameter: value for parameter, (_, value) in found.items()}


def _matching(pattern: str, names: Iterable[str], setting: str) -> list[str]:
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        known = list(names)
        near = difflib.get_close_matches(pattern, known, NEAREST, cutoff=0.0)
        kind = "weight or buffer of the model" if setting == "freeze" else "trained weight"
        raise ConfigError(f"model.init.{setting}: `{pattern}` matches no {kind}; the nearest: {', '.join(near)}")
    return found
