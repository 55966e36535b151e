"""Points of a sweep or study: dotted settings, merged over an experiment and validated as if written in its file."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from workflow_lib.config.compose import overlay_point, project_root
from workflow_lib.config.experiment import Experiment, Sweep
from workflow_lib.config.identity import canonical, identity
from workflow_lib.config.messages import messages, shown
from workflow_lib.config.yaml import Origins
from workflow_lib.errors import ConfigError
from workflow_lib.plugins import Section

Point = dict[str, Any]
LARGEST = 100_000  # points of a sweep; a larger number is probably a typo

# The sections of an experiment that determine the result of a run.
RUN_SECTIONS = ("seed", "data", "model", "optimizer", "schedule", "training", "augment")
# Settings in which the repetitions of a configuration differ.
REPEATED = ("seed", "data.folds", "data.fold")


def nested(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point as a tree: {"optimizer": {"lr": 1}} for {"optimizer.lr": 1}. Longer names win."""
    tree: dict[str, Any] = {}
    for name in sorted(point, key=lambda name: name.count(".")):
        *parents, last = name.split(".")
        here = tree
        for parent in parents:
            if not isinstance(here.get(parent), dict):
                here[parent] = {}
            here = here[parent]
        here[last] = copy.deepcopy(point[name])
    return tree


def points(sweep: Sweep, seed: int) -> Iterator[Point]:
    """Yield the points of a sweep, or a single empty point without a sweep; the last axis by name varies fastest.

    `seed` is the experiment's: the first of `sweep.seeds`. The repetitions of a point follow each other. Raises
    ConfigError for an exclusion that matches no point, and if no point is left.
    """
    used = [False] * len(sweep.exclude)
    left = 0
    for point in _product(sweep, seed):
        matched = [matches(point, pattern) for pattern in sweep.exclude]
        used = [before or now for before, now in zip(used, matched, strict=True)]
        if not any(matched):
            left += 1
            yield point
    for number, pattern in enumerate(sweep.exclude):
        if not used[number]:
            raise ConfigError(
                f"sweep.exclude[{number}]: {shown(pattern)} matches no point of the sweep; is there a typo in a value?"
            )
    if not left:
        raise ConfigError("sweep.exclude: no point of the sweep is left")


def _product(sweep: Sweep, seed: int) -> Iterator[Point]:
    grid = [[{name: value} for value in values] for name, values in sweep.grid.items()]
    side_by_side = [dict(zip(sweep.zip, row, strict=True)) for row in zip(*sweep.zip.values(), strict=True)]
    axes = [*([sweep.list] if sweep.list else []), *([side_by_side] if sweep.zip else []), *grid]
    axes += _repetitions(sweep, seed)
    count = math.prod(map(len, axes))
    if count > LARGEST:
        raise ConfigError(f"sweep: {count:,} points; at most {LARGEST:,} are allowed")
    for parts in itertools.product(*axes):
        yield {name: value for part in parts for name, value in part.items()}


def _repetitions(sweep: Sweep, seed: int) -> list[list[Point]]:
    """Return the axes of folds and seeds: points that repeat the same configuration."""
    axes: list[list[Point]] = []
    if sweep.folds is not None:
        axes.append([{"data.folds": sweep.folds, "data.fold": fold} for fold in range(sweep.folds)])
    if sweep.seeds is not None:
        axes.append([{"seed": seed + number} for number in range(sweep.seeds)])
    return axes


def matches(point: Point, pattern: Point) -> bool:
    """Return True if the point has every value of the pattern."""
    return all(name in point and point[name] == value for name, value in pattern.items())


@dataclass(frozen=True)
class Part:
    """A section of a run, and the canonical JSON of its identity."""

    value: Any
    text: str


class Layers:
    """Merges points over an experiment. A section that many points share is validated only once."""

    def __init__(self, experiment: Experiment) -> None:
        self._values = {name: getattr(experiment, name) for name in Experiment.model_fields}
        self._dumped = {name: _dumped(self._values[name]) for name in RUN_SECTIONS}
        self._base = {name: _part(self._values[name]) for name in RUN_SECTIONS}
        self._root = project_root()
        self._seen: dict[tuple[str, str], Part | list[str]] = {}

    def parts(self, point: Mapping[str, Any], where: str) -> dict[str, Part]:
        """Return the sections of the run at a point; errors name `where` as its origin."""
        found, problems = dict(self._base), []
        for name, value in nested(point).items():
            key = (name, canonical(value))
            if key not in self._seen:
                self._seen[key] = self._validated(name, value, where)
            part = self._seen[key]
            if isinstance(part, Part):
                found[name] = part
            else:
                problems += part
        if problems:
            raise ConfigError("\n".join(problems))
        return found

    def _validated(self, name: str, value: Any, where: str) -> Part | list[str]:
        merged = overlay_point({name: self._dumped.get(name)}, {name: value})
        try:
            experiment = Experiment.model_validate({**self._values, **merged}, context={"root": self._root})
        except ValidationError as error:
            return messages(error.errors(), Experiment, merged, Origins({(): where}))
        return _part(getattr(experiment, name))


def _dumped(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Section) else value


def _part(value: Any) -> Part:
    return Part(value, canonical(identity(value) if isinstance(value, Section) else value))
