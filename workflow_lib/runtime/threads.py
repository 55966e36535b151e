"""How many threads one process computes with, and how it keeps its memory."""

from __future__ import annotations

import ctypes
import os

import torch


def set_threads(count: int) -> None:
    """Torch, and what is started from here, compute with this many threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    torch.set_num_threads(count)


# parameters of glibc's mallopt (malloc.h), and what is asked for, in bytes
MALLOC = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 64 << 20), "M_MMAP_THRESHOLD": (-3, 1 << 30)}


def keep_freed_memory() -> None:
    """Memory that a step frees stays with the process for the next one; glibc would give it back each time.

    Without it every step of a small model pays hundreds of page faults. Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in MALLOC.values():
            mallopt(parameter, value)
