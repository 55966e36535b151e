"""Bootstrap intervals: the range of a metric over other test splits of the same kind.

Samples are drawn with replacement from the whole test split. A metric is a function of the number of times that each
sample was drawn, so a thousand resamples are a few matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from workflow_lib.config.experiment import Evaluate

WEIGHTS_AT_ONCE = 2_000_000  # bounds memory to some tens of MiB

PROPORTIONS = {"accuracy"}

Scores = Callable[[np.ndarray], dict[str, np.ndarray]]


class Resampling(NamedTuple):
    """Settings of the bootstrap."""

    resamples: int
    confidence: float
    seed: int

    @classmethod
    def of(cls, settings: Evaluate) -> Resampling:
        """Return the resampling of the `evaluate` section."""
        return cls(settings.bootstrap, settings.confidence, settings.seed)

    def describe(self) -> dict[str, Any]:
        """Return the settings, as in evaluation.json."""
        return {"method": "percentile", **self._asdict()}


def drawn(scores: Scores, samples: int, how: Resampling) -> dict[str, np.ndarray]:
    """Return each metric on each resample; ``scores`` takes weights, int32 [samples, resamples]."""
    generator = np.random.default_rng(how.seed)
    at_once = max(1, WEIGHTS_AT_ONCE // samples)
    parts = [scores(np.empty((samples, 0), dtype=np.int32))] if not how.resamples else []
    for first in range(0, how.resamples, at_once):
        columns = min(at_once, how.resamples - first)
        # each resample counts in a range of its own, so that one bincount counts all of them
        rows = generator.integers(0, samples, (columns, samples)) + np.arange(columns)[:, None] * samples
        counts = np.bincount(rows.ravel(), minlength=columns * samples).astype(np.int32)
        parts.append(scores(np.ascontiguousarray(counts.reshape(columns, samples).T)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def intervals(
    scores: Scores,
    samples: int,
    how: Resampling,
    *,
    reasons: dict[str, str] | None = None,
    lacking: str = "lack a class",
) -> dict[str, dict[str, Any]]:
    """Return each metric with its percentile interval.

    `reasons` say why a metric has no value, by name; `lacking` says why most resamples may have none.

    A proportion of 0 or 1 is the same in every resample, so `exact` computes its interval.
    """
    point = scores(np.ones((samples, 1), dtype=np.int32))
    resampled = drawn(scores, samples, how)
    found = {
        name: _interval(values[0], resampled[name], how.confidence, (reasons or {}).get(name), lacking)
        for name, values in point.items()
    }
    for name in PROPORTIONS & found.keys() if how.resamples else ():
        if found[name]["value"] in (0.0, 1.0):
            found[name] |= exact(found[name]["value"], samples, how.confidence)
    return found


def exact(proportion: float, samples: int, confidence: float) -> dict[str, Any]:
    """Return the interval of a proportion of 0 or 1 by Clopper and Pearson (1934)."""
    least = ((1 - confidence) / 2) ** (1 / samples)
    low, high = (least, 1.0) if proportion else (0.0, 1.0 - least)
    return {"low": low, "high": high, "method": "exact (Clopper-Pearson)"}


def _interval(value: float, values: np.ndarray, confidence: float, reason: str | None, lacking: str) -> dict[str, Any]:
    """Return value, low and high; None, with the reason, for each that is undefined."""
    if reason:
        return {"value": None, "low": None, "high": None, "reason": reason}
    defined = values[~np.isnan(values)]
    interval: dict[str, Any] = {"value": float(value), "low": None, "high": None}
    if 2 * len(defined) > len(values):
        tail = (1 - confidence) / 2
        low, high = np.quantile(defined, [tail, 1 - tail])
        interval.update(low=float(low), high=float(high))
    elif len(values):
        interval["reason"] = f"no interval: most resamples {lacking}"
    if len(defined) < len(values):
        interval["undefined_resamples"] = len(values) - len(defined)
    return interval
