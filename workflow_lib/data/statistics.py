"""Mean and standard deviation from exact sums, which do not depend on the order or the size of the pieces."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

BLOCK_VALUES = 1 << 16  # values summed at once: they fit the cache


class Moments:
    """Exact sums by channel; only the final mean and standard deviation are rounded."""

    def __init__(self, channels: int) -> None:
        self.counts = [0] * channels
        self.sums = [Fraction(0)] * channels
        self.squares = [Fraction(0)] * channels

    def add(self, inputs: np.ndarray) -> None:
        """Add inputs [n, channels, ...]; NaN values are skipped."""
        step = max(1, BLOCK_VALUES // max(1, inputs[:1].size))
        for block in (inputs[start : start + step] for start in range(0, len(inputs), step)):
            for channel in range(len(self.sums)):
                values = block[:, channel].ravel()
                if values.dtype != np.uint8 and (is_missing := np.isnan(values)).any():
                    values = values[~is_missing]
                if not len(values):
                    continue
                total, squares = _sums(values)
                self.sums[channel] += total
                self.squares[channel] += squares
                self.counts[channel] += len(values)

    def merge(self, other: Moments) -> None:
        """Add the sums of other values."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sums = [a + b for a, b in zip(self.sums, other.sums, strict=True)]
        self.squares = [a + b for a, b in zip(self.squares, other.squares, strict=True)]

    def constant_channels(self) -> list[int]:
        """Return the numbers of the channels whose values are all equal."""
        sums = zip(self.counts, self.sums, self.squares, strict=True)
        # Cauchy-Schwarz: n times the sum of squares equals the squared sum only if all values are equal.
        return [number for number, (n, total, squares) in enumerate(sums) if n > 1 and squares * n == total**2]

    def mean_and_std(self, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return means and standard deviations of values divided by the scale, by channel; 1 for a constant channel."""
        unit, counts = Fraction(scale), [max(1, count) for count in self.counts]
        means = [total / count for total, count in zip(self.sums, counts, strict=True)]
        variances = [s / n - mean**2 for s, n, mean in zip(self.squares, counts, means, strict=True)]
        return tuple(float(m / unit) for m in means), tuple(math.sqrt(v / unit**2) or 1.0 for v in variances)


def _sums(values: np.ndarray) -> tuple[Fraction, Fraction]:
    """Return the exact sums of the values, uint8 or float32, and of their squares."""
    if values.dtype == np.uint8:
        counts = np.bincount(values, minlength=256).tolist()
        return Fraction(sum(v * n for v, n in enumerate(counts))), Fraction(
            sum(v * v * n for v, n in enumerate(counts))
        )
    doubles = values.astype(np.float64)  # the square of a float32 is exact in a float64
    return exact_sum(doubles), exact_sum(np.square(doubles))


def exact_sum(values: np.ndarray) -> Fraction:
    """Return the sum of up to 2^26 float64 values below 2^990, without rounding.

    Adding and subtracting a large number leaves the upper bits of each value, and their sum is exact in a float64
    (Demmel and Nguyen 2015, "Parallel reproducible summation"). The next round sums the bits that remain.
    """
    total, rest = Fraction(0), values.astype(np.float64)
    while largest := float(np.abs(rest).max()):
        large = 1.5 * 2.0 ** (math.frexp(largest)[1] + 27)
        upper = rest + large
        upper -= large
        rest -= upper
        total += Fraction(float(upper.sum()))
    return total


def merged_in_float32(values: np.ndarray, *, tolerance: float = 0.0) -> tuple[Any, Any] | None:
    """Return two different numbers that are equal in float32, if more than this fraction is merged; else None."""
    different = np.unique(values)
    same = np.flatnonzero(np.diff(different.astype(np.float32)) == 0)
    if len(same) <= tolerance * len(different):
        return None
    return different[same[0]].item(), different[same[0] + 1].item()
