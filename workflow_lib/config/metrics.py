"""Comparison of metric values; the tasks define which metrics are maximised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from workflow_lib import plugins

Row = TypeVar("Row", bound=Mapping[str, Any])


def is_lower_better(metric: str) -> bool:
    """Return True for a metric that is minimised."""
    facts = plugins.all_facts().values()
    return not any(metric == f"val_{task.curve[0]}" and task.larger_is_better for task in facts)


def gain(metric: str, value: float) -> float:
    """Return the value with the sign that makes the larger number the better one."""
    return -value if is_lower_better(metric) else value


def is_better(metric: str, value: float, than: float | None) -> bool:
    """Return True if the value is better than the other value, or there is no other."""
    return than is None or gain(metric, value) > gain(metric, than)


def best_row(rows: Sequence[Row], metric: str) -> Row | None:
    """Return the first of the rows with the best finite value of the metric, or None if no row has a finite value."""
    finite = [row for row in rows if row[metric] is not None and math.isfinite(row[metric])]
    return max(finite, key=lambda row: gain(metric, row[metric]), default=None)
