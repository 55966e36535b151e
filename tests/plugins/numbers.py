"""Regression data: two sums of five values, on different scales."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib.plugins import Section, Task

if TYPE_CHECKING:
    from workflow_lib.data import Source


class Params(Section):
    """No settings."""


def task(params: Params) -> Task:
    return "regression"


def open_source(params: Params, root: Path) -> Source:
    """Return equal data on every call."""
    import numpy as np

    from workflow_lib.data import from_arrays

    inputs = np.random.default_rng(0).normal(size=(600, 5)).astype("float32")
    targets = np.stack([100 + 7 * inputs.sum(1), inputs[:, 0] - inputs[:, 1]], 1)
    return from_arrays(inputs, targets)
