"""A GPU for the runs of a pack where there is none: they train on the CPU, and its memory is made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from workflow_lib import packs
from workflow_lib.config import Experiment
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


def plant() -> None:
    """Let packs share the GPU."""
    packs.train = partial(packs.train, share=share)
    gpus.count_for = lambda device: int(device != "cpu")
