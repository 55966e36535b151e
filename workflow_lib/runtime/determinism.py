"""Settings of torch that change bits: deterministic kernels and precision."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

MODES = {"strict": "error", "warn": "warn", "standard": "default"}  # of torch, by `training.determinism`
# torch's error and warning; the operation has no name if cuBLAS has started without its workspace
NO_KERNEL = re.compile(r"(\S+) does not have a deterministic implementation|Deterministic behavior was enabled with")


def set_determinism(determinism: str) -> None:
    """Select the kernels of `training.determinism`.

    strict: deterministic ones, which give equal bits, or an error; warn: the same, and another kernel with a warning
    where there is none; standard: the fastest.
    """
    is_deterministic = determinism != "standard"
    if is_deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.set_deterministic_debug_mode(MODES[determinism])
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # costs time, and no kernel reads that memory
    torch.backends.cudnn.deterministic = is_deterministic
    torch.backends.cudnn.benchmark = not is_deterministic


@contextmanager
def kernels_watched(met: Callable[[str], None]) -> Iterator[None]:
    """Call the function with the name of an operation whenever torch warns that it has no deterministic kernel.

    Other warnings are shown as before. It also sees warnings that Python would show once; not those that code within
    the block silences by filters of its own.
    """
    with warnings.catch_warnings():
        show = warnings.showwarning

        def look(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if found := NO_KERNEL.search(str(message)):
                met(found[1] or "cuBLAS")
            else:
                show(message, category, *where, **more)

        warnings.filterwarnings("always", NO_KERNEL.pattern)
        warnings.showwarning = look
        yield


def set_precision(precision: str) -> None:
    """Allow TF32 in matrix products and convolutions on CUDA for the precision `tf32` only."""
    backends: Any = torch.backends
    cuda, cudnn = backends.cuda, backends.cudnn
    cuda.matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    # torch has a second set of switches, which takes precedence once a program (a user's module) has used it
    for operation in (cuda.matmul, cudnn.conv, cudnn.rnn):
        operation.fp32_precision = "tf32" if precision == "tf32" else "ieee"


def empty_caches() -> None:
    """Return cached GPU memory to the driver; do not start CUDA if it was not used."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
