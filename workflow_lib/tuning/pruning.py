"""The median rule: a trial ends if its best value so far is worse than the median of complete trials at that epoch."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from workflow_lib.config.length import is_counted_in_steps
from workflow_lib.config.metrics import gain
from workflow_lib.tuning.study_files import Result, Row, Suggestion

if TYPE_CHECKING:
    from workflow_lib.config.experiment import Tune
    from workflow_lib.config.run import Training

StopEarly = Callable[[Sequence[Row]], bool]


def thresholds(tune: Tune, results: Sequence[Result], training: Training) -> list[float | None]:
    """Return the median of the complete trials' metric after each validation but the last; empty without a pruner.

    During the warm-up, or if too few trials reached a validation, the median is None and nothing is pruned there.
    """
    if tune.pruner == "none":
        return []
    curves = [[point["value"] for point in result["curve"]] for result in results if result["state"] == "complete"]
    medians: list[float | None] = []
    # in steps, the number of validations may depend on the data: then it is that of the longest trial
    last = max(map(len, curves), default=0) if is_counted_in_steps(training) else training.epochs or 0
    for i in range(last - 1):  # pruning after the last validation saves nothing
        values = [value for curve in curves if len(curve) > i and (value := curve[i]) is not None]
        has_enough = i >= tune.warmup_epochs and len(values) >= tune.min_trials
        medians.append(statistics.median(values) if has_enough else None)
    return medians


def pruner(suggestion: Suggestion) -> StopEarly:
    """Return a function that takes the history and returns whether the trial is pruned by then."""
    return functools.partial(_is_pruned, suggestion)


def _is_pruned(suggestion: Suggestion, history: Sequence[Row]) -> bool:
    return pruned_after(suggestion, metric_values(suggestion["metric"], history)) is not None


def pruned_after(suggestion: Suggestion, values: Sequence[float | None]) -> int | None:
    """Return the number of validations after which the trial is pruned, or None if it is not."""
    metric, best_so_far, maximized = suggestion["metric"], -math.inf, suggestion.get("maximized", [])
    for i, (value, threshold) in enumerate(zip(values, suggestion["thresholds"], strict=False)):
        best_so_far = max(best_so_far, gain(metric, value, maximized))
        if threshold is not None and best_so_far < gain(metric, threshold, maximized):
            return i + 1
    return None


def metric_values(metric: str, history: Sequence[Row]) -> list[float | None]:
    """Return the metric of each row, None where it is not finite."""
    return [finite(row[metric]) for row in history]


def finite(value: float | None) -> float | None:
    """Return the value, or None if it is NaN or infinite."""
    return float(value) if value is not None and math.isfinite(value) else None
