"""Summaries: gradients, weights and images of a step, which a training records with `tracking.every_steps`.

A file for each step, which is named by it. So a step that is computed again replaces its file, and a reader takes those
up to the step of the newest checkpoint, which a crash cannot undo.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib.checkpoint import safetensors
from workflow_lib.files import compact_json, open_regular, write_atomic

if TYPE_CHECKING:
    import torch

BINS = 32
STATISTICS = ("values", "not_finite", "low", "high", "total", "squares")


@dataclass(frozen=True)
class Histogram:
    """The distribution of the finite values of a tensor.

    values      number of finite values; the other numbers are of these
    not_finite  number of the others
    low, high   smallest and largest value
    total       sum of the values
    squares     sum of their squares
    counts      number of values in each of BINS bins of equal width between `edges`
    """

    values: int
    not_finite: int
    low: float
    high: float
    total: float
    squares: float
    counts: tuple[int, ...]

    @property
    def norm(self) -> float:
        """Euclidean norm."""
        return math.sqrt(self.squares)

    @property
    def edges(self) -> list[float]:
        """Edges of the bins [BINS + 1]."""
        low, high = bounds(self.low, self.high)
        return [*(low + (high - low) * place / BINS for place in range(BINS)), high]


def bounds(low: float, high: float) -> tuple[float, float]:
    """Return the outer edges of the bins: those of a bin around the value if all values are equal."""
    return (low, high) if low < high else (low - 0.5, high + 0.5)


@dataclass(frozen=True)
class Summary:
    """The record of a step.

    histograms  by name: `gradients/<weight>` and `parameters/<weight>`
    images      PNG files, by name: `inputs` and `predictions`
    """

    histograms: Mapping[str, Histogram]
    images: Mapping[str, bytes]

    @property
    def metrics(self) -> dict[str, float]:
        """Norms of all gradients and of all trained weights together; left out if a value is not finite."""
        found = {}
        for kind, name in (("gradients/", "gradient_norm"), ("parameters/", "parameter_norm")):
            every = [histogram for label, histogram in self.histograms.items() if label.startswith(kind)]
            if every and not any(histogram.not_finite for histogram in every):
                found[name] = math.sqrt(sum(histogram.squares for histogram in every))
        return found


def write(path: Path, statistics: Mapping[str, torch.Tensor], images: Mapping[str, bytes]) -> None:
    """Write a summary; the statistics of a tensor are float64: STATISTICS, then its counts."""
    import torch

    texts = {f"images/{name}": content for name, content in images.items()} | {"names": compact_json([*statistics])}
    tensors = {name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in texts.items()}
    if statistics:
        tensors["histograms"] = torch.stack([*statistics.values()])
    write_atomic(path, [*safetensors.encode("summary", tensors)])


def read(path: Path) -> Summary:
    """Return the summary of a file. Raises ValueError if it is damaged, OSError if it is missing."""
    with open_regular(path) as file:
        tensors = safetensors.read(file, path.stat().st_size)
    rows = tensors["histograms"].tolist() if "histograms" in tensors else []
    images = {name.removeprefix("images/"): value for name, value in tensors.items() if name.startswith("images/")}
    return Summary(
        {name: _histogram(row) for name, row in zip(json.loads(_bytes(tensors["names"])), rows, strict=True)},
        {name: _bytes(value) for name, value in sorted(images.items())},
    )


def _histogram(row: list[float]) -> Histogram:
    values, not_finite, low, high, total, squares, *counts = row
    return Histogram(int(values), int(not_finite), low, high, total, squares, tuple(map(int, counts)))


def _bytes(value: torch.Tensor) -> bytes:
    return bytes(safetensors.bytes_of(value))
