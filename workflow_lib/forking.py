"""The launcher forks its ranks, so nothing may start CUDA in it: a process forked from one that has cannot use a GPU.

Many harmless questions start CUDA: the version of cuDNN, torch's build, an ``is_available`` without the driver's own
library. So in a launcher torch counts GPUs without CUDA, all else is asked by a rank, and before the fork the driver
itself says whether somebody has started it after all.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from workflow_lib.errors import ConfigError, RankError

NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"  # torch.cuda.is_available asks the driver's management library, not CUDA
NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED of the driver's API (cuda.h)

starters: list[str] = []  # modules of the user that started CUDA when they were imported


@contextmanager
def importing(name: str) -> Iterator[None]:
    """The block imports a module of the user: if that starts CUDA, it is known who did."""
    os.environ.setdefault(NVML, "1")
    was_started = has_started_cuda()
    try:
        yield
    finally:
        if not was_started and has_started_cuda():
            starters.append(name)


def has_started_cuda() -> bool:
    """True if something in this process has started the driver.

    The driver answers any question but a few with NOT_INITIALIZED before that; torch's ``is_initialized`` knows of
    torch's own contexts only. A forked process has to ask before the fork.
    """
    if not hasattr(os, "RTLD_NOLOAD"):
        return False  # only Linux has both CUDA and fork
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return False  # nobody has loaded it
    return int(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))) != NOT_INITIALIZED


def count_without_cuda(count: Callable[[], int]) -> None:
    """Whoever asks torch in this process how many GPUs there are gets an answer that does not start CUDA.

    torch asks the driver's management library first, and CUDA where that does not know: with MIG devices, or in
    containers without it. There ``count`` answers instead.
    """
    import torch

    os.environ.setdefault(NVML, "1")
    core: Any = torch._C  # the one place below all of torch's questions (torch 2.10 to 2.13)
    if hasattr(core, "_cuda_getDeviceCount") and not hasattr(core, "_everstep_count"):
        core._everstep_count, core._cuda_getDeviceCount = core._cuda_getDeviceCount, count


def count_with_cuda() -> None:
    """torch counts as it always does: for a rank."""
    import torch

    core: Any = torch._C
    if hasattr(core, "_everstep_count"):
        core._cuda_getDeviceCount = core._everstep_count
        del core._everstep_count


def refuse_started_cuda() -> None:
    """Raises ConfigError if ranks that are forked from this process could not use a GPU; it names who is to blame."""
    if starters:
        raise ConfigError(
            f"{', '.join(starters)}: importing it starts CUDA, and the training's processes, which are forked from "
            "this one, could then use no GPU. Ask for devices inside build() or forward(), not at the top of the file; "
            "torch.cuda.is_available() and device_count() may stay"
        )
    if has_started_cuda():
        raise ConfigError(
            "something started CUDA in this process before the training's processes were forked from it, which could "
            "then use no GPU: a sitecustomize, a .pth file, or a package that starts CUDA when it is imported"
        )


def explain(error: RuntimeError) -> None:
    """Raises RankError where CUDA says that this process was forked from one that had started it."""
    if "forked subprocess" in str(error) or "initialization error" in str(error):
        who = f": {', '.join(starters)} did when it was imported" if starters else ""
        raise RankError(
            f"this process was forked from one that had started CUDA, and can use no GPU{who} (docs/gpu.md)"
        ) from error
