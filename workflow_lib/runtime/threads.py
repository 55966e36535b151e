"""How many threads one process computes with."""

from __future__ import annotations

import os

import torch


def set_threads(count: int) -> None:
    """Torch, and what is started from here, compute with this many threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    torch.set_num_threads(count)
