"""Points of a sweep or a study: dotted settings laid over an experiment."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from workflow_lib.config.compose import overlay
from workflow_lib.config.sections import Sweep

Point = dict[str, Any]


def nested(point: Point) -> dict[str, Any]:
    """The tree of a point: {"optimizer.lr": 1} as {"optimizer": {"lr": 1}}."""
    tree: dict[str, Any] = {}
    for name in sorted(point, key=lambda name: name.count(".")):
        *parents, last = name.split(".")
        here = tree
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = dict(point[name]) if isinstance(point[name], dict) else point[name]
    return tree


def lay(values: dict[str, Any], point: Point) -> dict[str, Any]:
    """The settings with the point's on top."""
    return overlay(values, nested(point))


def points(sweep: Sweep) -> Iterator[Point]:
    """The points of a sweep in the order written, the last axis fastest; one empty point without a sweep."""
    for point in _product(sweep):
        if not any(matches(point, excluded) for excluded in sweep.exclude):
            yield point


def _product(sweep: Sweep) -> Iterator[Point]:
    grid = [[{name: value} for value in values] for name, values in sweep.grid.items()]
    side_by_side = [dict(zip(sweep.zip, row, strict=True)) for row in zip(*sweep.zip.values(), strict=True)]
    axes = [*([sweep.list] if sweep.list else []), *([side_by_side] if sweep.zip else []), *grid]
    for parts in itertools.product(*axes):
        yield {name: value for part in parts for name, value in part.items()}


def matches(point: Point, pattern: Point) -> bool:
    """True when the point has every value of the pattern."""
    return all(name in point and point[name] == value for name, value in pattern.items())
