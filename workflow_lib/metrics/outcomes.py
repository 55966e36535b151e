"""The predictions of a run for the test split, read back from predictions.csv."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workflow_lib.errors import DataError
from workflow_lib.metrics.bootstrap import Scores

CHUNK_ROWS = 4096
VIEWS = "views"  # column before `sample`: number of views of each image that the probabilities are the mean of
MOST_VALUES = 100_000_000  # numbers in a file: 800 MB of float64


class Told(NamedTuple):
    """A prediction in words: the true value, the predicted one, and how certain or how wrong that is."""

    true: str
    predicted: str
    certainty: float


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Predictions for n samples.

    names    columns that name the samples, such as `file`; one value for each sample
    truth    what the predictions are compared with [n, any], equal for equal test samples
    scores   returns each metric for each column of weights [n, columns], as in evaluation.json
    wrong    [n] how certain or how large the error of a sample is; 0 if it is right
    told     returns the prediction for a sample in words
    certainty  heading of the number that `told` gives
    ranked   for each class or label its probabilities [n], and True where a sample has it [n]
    chosen   probability of the predicted class [n], and True where it is right; None without classes
    """

    names: Mapping[str, Sequence[str]]
    truth: np.ndarray
    scores: Callable[[], Scores]
    wrong: np.ndarray
    told: Callable[[int], Told]
    certainty: str
    ranked: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    chosen: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.truth)

    def name_of(self, sample: int) -> str:
        """Return what a sample is called: its file, row or key, or else its number in the test split."""
        parts = [
            values[sample] if column in ("file", "key") else f"{column} {values[sample]}"
            for column, values in self.names.items()
        ]
        return ", ".join(parts) or f"sample {sample}"

    def has_samples_of(self, other: Outcomes) -> bool:
        """Return True if both are predictions for the same samples, in the same order, with the same targets."""
        return (
            {name: list(values) for name, values in self.names.items()}
            == {name: list(values) for name, values in other.names.items()}
            and self.truth.shape == other.truth.shape
            and np.array_equal(self.truth, other.truth, equal_nan=True)
        )


def read(path: Path) -> tuple[dict[str, list[str]], list[str], np.ndarray]:
    """Return the columns that name the samples, the names of those after `sample`, and their values [n, columns].

    An empty cell is NaN. Raises DataError if the file is not a table of predictions, or too large to be read whole.
    """
    if path.stat().st_size > 20 * MOST_VALUES:
        raise DataError(f"{path}: {path.stat().st_size / 1e9:.1f} GB of predictions are too many to be read whole")
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        if "sample" not in header:
            raise DataError(f"{path}: no table of predictions: it has no column `sample`")
        first = header.index("sample")
        named: list[list[str]] = []
        parts: list[np.ndarray] = [np.empty((0, len(header) - first - 1))]
        while chunk := list(islice(lines, CHUNK_ROWS)):
            named += [line[:first] for line in chunk]
            parts.append(np.array([[float(cell or "nan") for cell in line[first + 1 :]] for line in chunk]))
    names = {name: [line[place] for line in named] for place, name in enumerate(header[:first]) if name != VIEWS}
    return names, header[first + 1 :], np.concatenate(parts)


def check_columns(path: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """Raise DataError if the columns of a file are not those that the task writes."""
    if list(found) != list(expected):
        raise DataError(
            f"{path}: the columns {', '.join(found[:6])} are not those of the task: {', '.join(expected[:6])}"
        )
