"""Handwritten digits: 1,797 images of 8x8 pixels with values from 0 to 16, which are part of scikit-learn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib.errors import ConfigError
from workflow_lib.plugins import DatasetFacts, Section

if TYPE_CHECKING:
    from workflow_lib.data import Source


class Params(Section):
    """No settings."""


def known(params: Params) -> DatasetFacts:
    """Return all facts: they do not depend on settings."""
    return DatasetFacts("images", size=(8, 8), channels=1, classes=10, samples=1797)


def open_source(params: Params, root: Path) -> Source:
    """Return all images; the splits are drawn from them.

    The file is read here, since scikit-learn, which has it, takes over a second to import.
    """
    import numpy as np

    from workflow_lib.data import from_arrays

    values = np.loadtxt(_file(), delimiter=",").astype(np.int64)  # 64 pixels and the digit
    images = values[:, :-1].reshape(-1, 1, 8, 8).astype(np.uint8)
    return from_arrays(images, values[:, -1], classes=[str(digit) for digit in range(10)], scale=16)


def _file() -> Path:
    """Return the file of the installed package. Raises ConfigError if there is none."""
    package = find_spec("sklearn")
    for folder in package.submodule_search_locations or () if package else ():
        if (path := Path(folder, "datasets", "data", "digits.csv.gz")).is_file():
            return path
    raise ConfigError("data.name: digits are a part of scikit-learn, which is not installed here")
