"""Checks that nothing has started CUDA in the launcher: a process forked after CUDA has started cannot use a GPU.

Many harmless queries start CUDA: the version of cuDNN, torch's build, ``is_available`` without NVML. So in a launcher
torch counts GPUs without CUDA, and only ranks make the other queries. Before the fork, the launcher asks the driver
itself whether it was started.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from workflow_lib.errors import ConfigError, RankError

NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"  # makes torch.cuda.is_available ask NVML, not CUDA
NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED of the driver's API (cuda.h)

_preparation: list[Callable[[], object]] = []  # to be called before the first import of a module of the user
starters: list[str] = []  # modules of the user that started CUDA when they were imported


@contextmanager
def importing(name: str) -> Iterator[None]:
    """Add the user's module that the block imports to ``starters`` if CUDA starts meanwhile."""
    if not name.startswith("workflow_lib."):
        prepare()
    os.environ.setdefault(NVML, "1")
    was_started = has_started_cuda()
    try:
        yield
    finally:
        if not was_started and has_started_cuda():
            starters.append(name)


def prepare_later(preparation: Callable[[], object]) -> None:
    """Let `prepare` call the function: a command that imports no module of the user then needs no torch."""
    _preparation[:] = [preparation]


def prepare() -> None:
    """Do the preparation, once, if there is one."""
    while _preparation:
        _preparation.pop()()


def has_started_cuda() -> bool:
    """Return True if something in this process has started the CUDA driver.

    torch's ``is_initialized`` knows only torch's own contexts. The driver itself answers nearly every call with
    NOT_INITIALIZED until it is started. To be called before the process forks.
    """
    if not hasattr(os, "RTLD_NOLOAD"):
        return False  # only Linux has both CUDA and fork
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return False  # nothing has loaded it
    return int(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))) != NOT_INITIALIZED


def count_without_cuda(count: Callable[[], int]) -> None:
    """Let torch in this process count GPUs without starting CUDA.

    torch asks NVML, and then CUDA if NVML cannot tell: with MIG devices, or in containers without NVML. In these cases
    it now calls ``count`` instead.
    """
    from workflow_lib.runtime import torch_internals  # here, since plugins need this module but not torch

    os.environ.setdefault(NVML, "1")
    torch_internals.replace_gpu_count(count)


def check_cuda_not_started() -> None:
    """Raise ConfigError if CUDA was started in this process, and name the module that started it."""
    if starters:
        raise ConfigError(
            f"{', '.join(starters)}: importing this module starts CUDA, and the training's processes, which are forked "
            "afterwards, could then not use a GPU. Use devices in build() or forward(), not at the top of the file; "
            "torch.cuda.is_available() and device_count() are allowed there"
        )
    if has_started_cuda():
        raise ConfigError(
            "something started CUDA in this process before the training's processes were forked, so they could not use "
            "a GPU. Look for a sitecustomize, a .pth file, or a package that starts CUDA when it is imported"
        )


def explain(error: RuntimeError) -> None:
    """Raise RankError if CUDA's error means that this process was forked after CUDA had started."""
    if "forked subprocess" in str(error) or "initialization error" in str(error):
        who = f": importing {', '.join(starters)} started it" if starters else ""
        raise RankError(
            f"this process cannot use a GPU: it was forked from one that had started CUDA{who} (docs/gpu.md)"
        ) from error
