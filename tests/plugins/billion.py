"""A data set of a billion windows that exist nowhere: their tokens are hashes of the number of the window."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from workflow_lib import Section

if TYPE_CHECKING:
    from workflow_lib import Source


class Params(Section):
    """Settings of the windows."""

    samples: int = Field(10**9, ge=1, description="number of windows")
    context: int = Field(8, ge=1, description="tokens to predict the next one from")


def task(params: Params) -> str:
    return "language"


def open_source(params: Params, root: Path) -> Source:
    """Return the windows."""
    import numpy as np

    from workflow_lib import MappedFiles, Source

    places = np.arange(params.context + 1, dtype=np.uint64)

    def windows(split: str, rows: np.ndarray) -> np.ndarray:
        numbers = rows.astype(np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15) + places
        return (numbers >> np.uint64(40)).astype(np.uint8)

    return Source(
        task="language",
        targets={"train": np.empty((params.samples, 0), np.int64)},
        read=windows,
        vocabulary=tuple(map(str, range(256))),
        is_thread_safe=True,
        mapped=MappedFiles(()),
        content=f"{params.samples} {params.context}",
    )
