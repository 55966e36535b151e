"""A GPU for the runs of a pack where there is none: they train on the CPU, and its memory is made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import torch

from workflow_lib import evaluation, packs
from workflow_lib.config import Experiment
from workflow_lib.evaluation import computing
from workflow_lib.packs.gpu import Memory
from workflow_lib.runtime import gpus

GB = 10**9
FREE = 10 * GB  # before the first run
RESERVED, CONTEXT = 3 * GB, GB  # of each run: two fit into nine tenths of what is free


@contextmanager
def share(
    experiment: Experiment, folder: Path, *, must_stop: Callable[[], object]
) -> Iterator[tuple[Experiment, Memory]]:
    """Yield what a pack on a GPU gets."""
    yield experiment, Memory(folder, FREE, lambda: (RESERVED, FREE - RESERVED - CONTEXT))


def only_cpu(name: str) -> AbstractContextManager[torch.device]:
    """Return the device of an evaluation, which gets no GPU while the trainings have it."""
    if name != "cpu":
        raise RuntimeError("an evaluation asks for the GPU of the pack")
    return computing.device_of(name)


def plant() -> None:
    """Let packs share the GPU."""
    packs.train = partial(packs.train, share=share)
    gpus.count_for = lambda device: int(device != "cpu")
    evaluation.device_of = only_cpu
