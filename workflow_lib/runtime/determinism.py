"""Switches of torch that decide bits: deterministic kernels and precision."""

from __future__ import annotations

import os
from typing import Any

import torch


def set_determinism(is_strict: bool) -> None:
    """Kernels give equal bits for equal inputs, or raise; if not strict, the fastest kernels are used."""
    if is_strict:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.set_deterministic_debug_mode("error" if is_strict else "default")
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # it only costs time: nothing reads that memory
    torch.backends.cudnn.deterministic = is_strict
    torch.backends.cudnn.benchmark = not is_strict


def set_precision(precision: str) -> None:
    """Matrix products and convolutions on CUDA round to TF32 only if that was asked for."""
    backends: Any = torch.backends
    cuda, cudnn = backends.cuda, backends.cudnn
    cuda.matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    # torch has a second set of switches, which decides if anybody, such as a user's module, has used it
    for operation in (cuda.matmul, cudnn.conv, cudnn.rnn):
        operation.fp32_precision = "tf32" if precision == "tf32" else "ieee"


def empty_caches() -> None:
    """Memory that torch keeps on a device is given back; a device that was never used stays untouched."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
