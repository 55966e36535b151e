"""A state of nested mappings and lists, taken apart into tensors and JSON values, and put together again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workflow_lib.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

TENSOR = "$tensor"  # key of a mapping that stands for a tensor; its value is the tensor's name


def take_apart(value: Any, name: str, tensors: dict[str, Tensor], who: str) -> Any:
    """Return the value in JSON values; its tensors are put into `tensors`, by their dotted names.

    Raises ConfigError, which begins with `who`, for what is neither.
    """
    import torch

    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach()
        return {TENSOR: name}
    if isinstance(value, Mapping) and all(isinstance(key, str) and key != TENSOR for key in value):
        return {key: take_apart(inner, f"{name}.{key}", tensors, who) for key, inner in value.items()}
    if isinstance(value, list):
        return [take_apart(inner, f"{name}.{index}", tensors, who) for index, inner in enumerate(value)]
    if value is None or isinstance(value, bool | str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ConfigError(
        f"{who}: `{name}` is {value!r:.60}, a {type(value).__name__}, which no checkpoint holds; allowed: tensors, "
        f"finite numbers, strings, booleans, None, and lists and mappings of these with strings as keys"
    )


def put_together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the value that was taken apart."""
    if isinstance(value, dict):
        if value.keys() == {TENSOR}:
            return tensors[value[TENSOR]]
        return {key: put_together(inner, tensors) for key, inner in value.items()}
    return [put_together(inner, tensors) for inner in value] if isinstance(value, list) else value
