"""The state of an optimizer in two parts, tensors and JSON values, and its restoration.

The state of torch's own optimizers consists of tensors. Those of users may also keep numbers, such as a count of steps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from workflow_lib.errors import ConfigError

Named = dict[str, torch.Tensor]


def tensors(optimizer: torch.optim.Optimizer) -> Named:
    """Return the tensors of the state, named `<index of the weight>.<name>`."""
    return {key: value for key, value in _items(optimizer) if isinstance(value, torch.Tensor)}


def strides(optimizer: torch.optim.Optimizer) -> dict[str, list[int]]:
    """Return the strides of the tensors that are not contiguous, such as moments of `channels_last` weights.

    Files have no strides, and fused kernels compute something else if those of a weight and its moments differ.
    Tensors with gaps, or with places that share memory, are left out: no copy has such strides.
    """
    return {
        name: list(value.stride())
        for name, value in tensors(optimizer).items()
        if not value.is_contiguous() and torch.empty_like(value, device="meta").stride() == value.stride()
    }


def restore_strides(optimizer: torch.optim.Optimizer, saved: Mapping[str, list[int]]) -> None:
    """Lay out the tensors of the state as they were when these strides were saved."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for key, stride in saved.items():
        number, name = key.split(".", 1)
        of_weight = optimizer.state[weights[int(number)]]
        laid_out = torch.empty_strided(
            of_weight[name].shape, stride, dtype=of_weight[name].dtype, device=of_weight[name].device
        )
        of_weight[name] = laid_out.copy_(of_weight[name])


def values(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the rest of the state as JSON values. Raises ConfigError, with the name, for what JSON cannot hold."""
    found = {key: value for key, value in _items(optimizer) if not isinstance(value, torch.Tensor)}
    for key, value in found.items():
        index, _, name = key.partition(".")
        kept = f"`{name}` of weight {index}" if index.isdecimal() else f"`{key}` of no weight"
        if not index.isdecimal() or not _is_json(value):
            raise ConfigError(
                f"optimizer.name: the state of {type(optimizer).__name__} has {kept}, a {type(value).__name__}, which a"
                f" checkpoint cannot hold; allowed: for each weight, tensors, finite numbers, strings, booleans, None,"
                f" and lists and mappings of these values, without tensors in them"
            )
    return found


def settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the settings of each group as JSON values, without its weights. Raises ConfigError if JSON cannot."""
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.state_dict()["param_groups"]
    ]
    for key, value in (item for group in groups for item in group.items()):
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"optimizer.name: the setting `{key}` of {type(optimizer).__name__} is no JSON value ({error}), and a "
                f"checkpoint cannot hold it; allowed: finite numbers, strings, booleans, None, lists and mappings"
            ) from error
    return groups


def restore_settings(optimizer: torch.optim.Optimizer, saved: list[dict[str, Any]]) -> None:
    """Set the settings of each group. JSON has no tuples: a setting that is one stays one."""
    for group, named in zip(optimizer.param_groups, saved, strict=True):
        for key, value in named.items():
            group[key] = tuple(value) if isinstance(group.get(key), tuple) and isinstance(value, list) else value


def restore(optimizer: torch.optim.Optimizer, saved: Mapping[str, torch.Tensor], rest: Mapping[str, Any]) -> None:
    """Set the state to the saved tensors and values, each with the type that it was saved with."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**saved, **rest}.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, named in state.items():
        loaded = optimizer.state[weights[index]]
        for name, value in named.items():
            # torch casts what it loads to the type of the weight
            if isinstance(value, torch.Tensor) and loaded[name].dtype != value.dtype:
                loaded[name] = value.to(loaded[name].device)


def _items(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    for index, named in optimizer.state_dict()["state"].items():
        if not isinstance(named, Mapping):
            yield str(index), named
            continue
        for name, value in named.items():
            yield f"{index}.{name}", value


def _is_json(value: Any) -> bool:
    """Return True if JSON gives the value back as it was."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False
