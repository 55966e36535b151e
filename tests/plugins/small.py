"""Small data of a table (regression) or a text (language)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workflow_lib.plugins import Section, Task

if TYPE_CHECKING:
    from workflow_lib.data import Source


class Params(Section):
    """The kind of data."""

    kind: Literal["rows", "tokens"] = Field(description="rows of a table for a regression, or tokens of a text")


def task(params: Params) -> Task:
    return "regression" if params.kind == "rows" else "language"


def open_source(params: Params, root: Path) -> Source:
    """360 samples: a function of two numbers and a category, or tokens that increase by one or two."""
    import numpy as np

    from workflow_lib.data import Feature, Source

    rng = np.random.Generator(np.random.PCG64(0))
    if params.kind == "rows":
        inputs = rng.normal(size=(360, 3)).astype(np.float32)
        inputs[:, 1] = rng.integers(0, 4, 360)
        features = (Feature("size"), Feature("kind", ("a", "b", "c", "d")), Feature("age"))
        targets = np.sin(3 * inputs[:, 0]) * inputs[:, 1] + inputs[:, 2]
        return Source(
            task="regression", targets={"train": targets}, read=lambda split, rows: inputs[rows], features=features
        )
    tokens = (np.cumsum(rng.integers(1, 3, (360, 13)), axis=1) % 20).astype(np.uint8)
    return Source(
        task="language",
        targets={"train": np.empty((360, 0), np.float32)},
        read=lambda split, rows: tokens[rows],
        vocabulary=tuple("abcdefghijklmnopqrst"),
    )
