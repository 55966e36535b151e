"""Handwritten digits: 1,797 images of 8x8 pixels with values from 0 to 16, which are part of scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib.plugins import DatasetFacts, Section

if TYPE_CHECKING:
    from workflow_lib.data import Source


class Params(Section):
    """No settings."""


def known(params: Params) -> DatasetFacts:
    """Return all facts: they do not depend on settings."""
    return DatasetFacts("images", size=(8, 8), channels=1, classes=10, samples=1797)


def open_source(params: Params, root: Path) -> Source:
    """Return all images; the splits are drawn from them."""
    import numpy as np
    from sklearn.datasets import load_digits

    from workflow_lib.data import from_arrays

    digits = load_digits()
    images = digits.images[:, np.newaxis].astype(np.uint8)
    return from_arrays(images, digits.target, classes=[str(digit) for digit in range(10)], scale=16)
