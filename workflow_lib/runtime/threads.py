"""Number of compute threads of a process, and what becomes of its freed memory."""

from __future__ import annotations

import ctypes
import os

import torch


def set_threads(count: int) -> None:
    """Let torch, and processes that are started from here, compute with this many threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    torch.set_num_threads(count)


# parameters of glibc's mallopt (malloc.h), and their values in bytes
MALLOC = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 64 << 20), "M_MMAP_THRESHOLD": (-3, 1 << 30)}


def keep_freed_memory() -> None:
    """Let the process keep memory that a step has freed; do nothing if the C library is not glibc.

    By default glibc returns it to the kernel, and the next step of a small model pays hundreds of page faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in MALLOC.values():
            mallopt(parameter, value)


def return_freed_memory() -> None:
    """Return freed memory to the kernel; do nothing if the C library is not glibc.

    glibc does not reuse all of the large aligned blocks that torch frees: a loop over batches would grow with each.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
