"""Rows of a split as runs of consecutive rows: a billion rows take a few kilobytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np

CHUNK_ROWS = 1 << 20
MOST_RUNS = 1024  # of each drawn split


class Rows:
    """Ascending rows; `runs` is int64 [k, 2]: first row, and the row after the last."""

    def __init__(self, runs: np.ndarray) -> None:
        self.runs = np.ascontiguousarray(runs, np.int64).reshape(-1, 2)
        self._ends = np.cumsum(self.runs[:, 1] - self.runs[:, 0])

    @classmethod
    def of(cls, rows: np.ndarray) -> Rows:
        """Return these ascending rows."""
        breaks = np.flatnonzero(np.diff(rows) != 1)
        firsts, lasts = rows[np.append(0, breaks + 1)[: len(rows)]], rows[np.append(breaks, len(rows) - 1)[: len(rows)]]
        return cls(np.column_stack((firsts, lasts + 1)))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """Return the rows at these places."""
        run = np.searchsorted(self._ends, places, side="right")
        return self.runs[run, 1] - (self._ends[run] - places)

    def chunks(self, size: int = CHUNK_ROWS) -> Iterator[np.ndarray]:
        """Yield all rows, so many at a time."""
        for start in range(0, len(self), size):
            yield self[np.arange(start, min(start + size, len(self)))]

    def spaced(self, count: int) -> np.ndarray:
        """Return so many rows, or all if there are fewer, evenly spaced."""
        count = min(count, len(self))
        return self[np.arange(count, dtype=np.int64) * len(self) // max(count, 1)]


def draw_runs(rows: int, fractions: Mapping[str, float], seed: int, unit: int) -> dict[str, Rows]:
    """Return rows for each fraction, and for `train` all others: runs of consecutive rows, at random places.

    The rows are divided into up to MOST_RUNS equal stretches. Each has one run of every split, next to each other, at
    a random place. No run is shorter than `unit` rows, if a split has as many.
    """
    sizes = {split: round(Fraction(fraction) * rows) for split, fraction in fractions.items()}
    smallest = min((size for size in sizes.values() if size), default=0)
    stretches = max(1, min(MOST_RUNS, smallest // unit))
    keys = np.random.Philox(key=seed).random_raw(stretches)  # the raw stream is the same in all numpy versions
    runs: dict[str, list[tuple[int, int]]] = {split: [] for split in ("train", *fractions)}
    for number, key in enumerate(keys.tolist()):
        begin, end = rows * number // stretches, rows * (number + 1) // stretches
        taken = [_share(size, number, stretches) for size in sizes.values()]
        at = begin + key % (end - begin - sum(taken) + 1)
        runs["train"].append((begin, at))
        for split, size in zip(sizes, taken, strict=True):
            runs[split].append((at, at + size))
            at += size
        runs["train"].append((at, end))
    return {split: Rows(_joined(of_split)) for split, of_split in runs.items()}


def _share(size: int, number: int, of: int) -> int:
    return size * (number + 1) // of - size * number // of


def _joined(runs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the runs without empty ones; those that touch become one."""
    joined: list[list[int]] = []
    for start, stop in runs:
        if joined and joined[-1][1] == start:
            joined[-1][1] = stop
        elif start < stop:
            joined.append([start, stop])
    return np.array(joined, np.int64).reshape(-1, 2)
