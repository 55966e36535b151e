"""Imports of a pack for its forks: first those of trainings, and the rest while the first of them run.

Garbage is not collected meanwhile: imports make millions of objects and hardly any garbage, and looking for it takes a
fifth of their time. What is imported is never looked at again, so forks go on sharing its memory with this process.
"""

from __future__ import annotations

import gc
import importlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from workflow_lib.runtime import gpus

# what a training imports, also in its ranks and when it has ended
TRAINING = (
    "torch.distributed.launcher.api",
    "workflow_lib.training.trainer",
    "workflow_lib.training.loss",
    "workflow_lib.data",
    "workflow_lib.launch.attempt",
    "workflow_lib.distributed.rendezvous",
    "workflow_lib.runtime.memory",
    "multiprocessing.popen_fork",
    "encodings.idna",
    "numpy.random",
    "safetensors.torch",
    "blake3",
)
# what evaluations and exports import; not onnxruntime, which starts threads
COMPUTING = (
    "onnx",
    "onnxscript.function_libs.torch_lib.ops",
    "torch.onnx",
    "numpy.ma",
    "workflow_lib.metrics.bootstrap",
    "workflow_lib.metrics.classes",
    "workflow_lib.evaluation",
    "workflow_lib.export",
)


class Rest:
    """The imports for evaluations and exports, one after the other."""

    def __init__(self, *, is_needed: bool) -> None:
        self._left: deque[Callable[[], object]] = deque()
        if is_needed:
            from workflow_lib.runtime.torch_internals import IMPORTED_LATE

            self._left.extend(partial(importlib.import_module, name) for name in (*IMPORTED_LATE, *COMPUTING))
            if not gpus.count():  # a pack must not start CUDA
                self._left.append(_export_first)

    def import_next(self) -> bool:
        """Import the next module; return False if there is none."""
        if not self._left:
            return False
        with without_collection():
            self._left.popleft()()
        return True

    def finish(self) -> None:
        """Import all that are left."""
        while self.import_next():
            pass


def import_for_training(*more: str) -> None:
    """Import what trainings need, and the modules ``more``."""
    with without_collection():
        for name in (*TRAINING, *more):
            importlib.import_module(name)
        from workflow_lib.runtime import environment

        environment.versions()


@contextmanager
def without_collection() -> Iterator[None]:
    """Collect no garbage inside the block, and none of the objects that are left after it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def _export_first() -> None:
    """Export a small network, since the first export of a process takes half a second longer than others."""
    import torch
    from torch import Tensor, nn

    from workflow_lib.export import graph

    layers = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 2)

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(*layers)

        def forward(self, *given: Tensor) -> Tensor:
            outputs: Tensor = self.network(given[0].float())
            return outputs

    with suppress(ImportError):
        from tqdm import tqdm  # shows the progress of exports

        tqdm.monitor_interval = 0  # or it starts a thread, and this process could not fork
    graph.convert(Small(), {"inputs": torch.zeros(2, 1, 4, 4)})
