"""Comparison of metric values; the tasks, and `training.metrics`, define which are maximised."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from workflow_lib import plugins

Row = TypeVar("Row", bound=Mapping[str, Any])


def is_lower_better(metric: str, maximized: Collection[str] = ()) -> bool:
    """Return True for a metric that is minimised. `maximized` are the metrics of `training.metrics` that are not."""
    facts = plugins.all_facts().values()
    return metric not in maximized and not any(
        metric == f"val_{task.curve[0]}" and task.larger_is_better for task in facts
    )


def gain(metric: str, value: float | None, maximized: Collection[str] = ()) -> float:
    """Return the value with the sign that makes the larger number the better one; without a value, the least."""
    if value is None or not math.isfinite(value):
        return -math.inf
    return -value if is_lower_better(metric, maximized) else value


def is_better(metric: str, value: float | None, than: float | None, maximized: Collection[str] = ()) -> bool:
    """Return True if the value is better than the other value, or there is no other."""
    return than is None or gain(metric, value, maximized) > gain(metric, than, maximized)


def best_row(rows: Sequence[Row], metric: str, maximized: Collection[str] = ()) -> Row | None:
    """Return the first of the rows with the best finite value of the metric, or None if no row has a finite value."""
    finite = [row for row in rows if row[metric] is not None and math.isfinite(row[metric])]
    return max(finite, key=lambda row: gain(metric, row[metric], maximized), default=None)
