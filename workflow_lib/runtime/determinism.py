"""Settings of torch that change bits: deterministic kernels and precision."""

from __future__ import annotations

import os
from typing import Any

import torch


def set_determinism(is_strict: bool) -> None:
    """Select deterministic kernels, which give equal bits or raise; if not strict, select the fastest kernels."""
    if is_strict:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.set_deterministic_debug_mode("error" if is_strict else "default")
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # costs time, and no kernel reads that memory
    torch.backends.cudnn.deterministic = is_strict
    torch.backends.cudnn.benchmark = not is_strict


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
