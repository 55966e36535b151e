"""The difference between two models on the same test samples, and whether it is more than noise.

The samples are drawn with replacement, as for the interval of a metric, but both models are measured on the same draw:
what makes a sample easy or hard for both does not count as noise. The interval says how the difference would vary with
other test samples; it says nothing about other seeds of the training.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workflow_lib.metrics.bootstrap import Resampling, Scores, drawn


class Difference(NamedTuple):
    """The value of a metric for the other model minus that for the first one, and its interval; None if undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def is_more_than_noise(self) -> bool | None:
        """True if the interval does not contain 0; None without an interval."""
        return None if self.low is None or self.high is None else not self.low <= 0 <= self.high


def differences(first: Scores, other: Scores, samples: int, how: Resampling) -> dict[str, Difference]:
    """Return the difference of each metric that both models have, with its percentile interval."""

    def both(weights: np.ndarray) -> dict[str, np.ndarray]:
        left, right = first(weights), other(weights)
        return {name: right[name] - left[name] for name in left if name in right}

    point, resampled = both(np.ones((samples, 1), dtype=np.int32)), drawn(both, samples, how)
    tail = (1 - how.confidence) / 2
    found = {}
    for name, values in point.items():
        defined = resampled[name][~np.isnan(resampled[name])]
        if np.isnan(values[0]):
            found[name] = Difference(None)
        elif 2 * len(defined) > how.resamples:
            low, high = np.quantile(defined, [tail, 1 - tail])
            found[name] = Difference(float(values[0]), float(low), float(high))
        else:
            found[name] = Difference(float(values[0]))
    return found
