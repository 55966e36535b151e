"""A graph on the CPU, plugged in where a CUDA graph would be: it records operations, and computes them again.

As on a GPU, a replay runs no Python of the recorded function: each operation reads and writes the tensors that it had,
numbers stay those of the recording, and random numbers come from the generator. A function that reads a value on the
host is rejected.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workflow_lib.runtime.torch_internals import storage_address

T = TypeVar("T")

# operations that the host waits for: of a value, of a size that depends on values, and of a copy of its own numbers
WAITING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique_dim", "_unique2", "item")
WAITING += ("lift_fresh",)  # torch.tensor(...)


class Recording(TorchDispatchMode):
    """Keep every operation with its tensors, and the place of the first that waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.place: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        has_mask = name.startswith("index") and any(
            isinstance(leaf, torch.Tensor) and leaf.dtype is torch.bool for leaf in tree_leaves(args[1:])
        )
        if self.place is None and (name in WAITING or has_mask):
            called = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename][-2]
            self.place = f"{called.filename}, line {called.lineno}"
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result


class RecordedGraph:
    """The graph of one function."""

    def __init__(self) -> None:
        self.replays = 0
        self._recording: Recording | None = None

    def warm_up(self, function: Callable[[], T]) -> T:
        return function()

    def watched(self, function: Callable[[], T]) -> tuple[T, str | None]:
        with Recording() as recording:
            result = function()
        return result, recording.place

    def capture(self, function: Callable[[], T]) -> T:
        with Recording() as self._recording:
            return function()

    @torch.no_grad()
    def replay(self) -> None:
        assert self._recording is not None
        self.replays += 1
        for func, args, kwargs, result in self._recording.operations:
            given = {storage_address(leaf) for leaf in _tensors((args, kwargs))}
            for old, new in zip(_tensors(result), _tensors(func(*args, **kwargs)), strict=True):
                if storage_address(old) not in given:  # else it is a view, or was changed in place
                    old.copy_(new)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))
