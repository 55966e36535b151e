"""The differences between runs: settings and metrics, each compared with those of the first run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from workflow_lib import tasks
from workflow_lib.comparison.subjects import Subject
from workflow_lib.errors import ConfigError
from workflow_lib.metrics.bootstrap import Resampling
from workflow_lib.metrics.paired import Difference, differences

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 0
UNPAIRED = "the test samples are not the same: compare the intervals only"


class Metric(NamedTuple):
    """A metric of each run: value, low and high, or None; and its differences from the first run, None if unknown."""

    label: str
    values: list[dict[str, Any]]
    differences: list[Difference | None]


@dataclass(frozen=True)
class Comparison:
    """Runs compared with the first of them.

    settings  value of each run for each setting that differs
    reasons   for each run but the first, why its differences cannot be tested; empty if they can
    views     the views of a test image that each run is evaluated with; empty if they are the same for all
    """

    subjects: Sequence[Subject]
    settings: dict[str, list[Any]]
    metrics: list[Metric]
    reasons: list[str]
    views: list[str]


def compare(subjects: Sequence[Subject]) -> Comparison:
    """Return the comparison of two runs or more. Raises ConfigError if their tasks differ."""
    first, *others = subjects
    for other in others:
        if other.evaluation["task"] != first.evaluation["task"]:
            kinds = [f"{run.name} is a {run.evaluation['task']}" for run in (first, other)]
            raise ConfigError(f"runs of different tasks have no metric in common: {' and '.join(kinds)}")
    names = dict.fromkeys(name for subject in subjects for name in subject.settings)
    settings = {name: [subject.settings.get(name) for subject in subjects] for name in names}
    predicted = first.outcomes()
    paired, reasons = [], []
    for other in others:
        reason, found = _paired(first, other, predicted)
        paired.append(found)
        reasons.append(reason)
    labels = dict(tasks.load(first.evaluation["task"]).metrics)
    for subject in subjects:
        labels |= {name: labels.get(name, name.replace("_", " ")) for name in subject.evaluation["metrics"]}
    for found in paired:  # such as means over images, which an evaluation does not have
        labels |= {name: labels.get(name, name.replace("_", " ")) for name in found}
    metrics = [
        Metric(
            label,
            [subject.evaluation["metrics"].get(name, {"value": None}) for subject in subjects],
            [None, *(found.get(name) for found in paired)],
        )
        for name, label in labels.items()
    ]
    return Comparison(
        subjects=subjects,
        settings={name: values for name, values in settings.items() if any(value != values[0] for value in values)},
        metrics=metrics,
        reasons=reasons,
        views=_views(subjects),
    )


def _views(subjects: Sequence[Subject]) -> list[str]:
    """Return the test-time augmentation of each run in words, or nothing if it is the same for all."""
    told = []
    for subject in subjects:
        evaluation: dict[str, Any] = {**subject.evaluation}
        chosen: dict[str, Any] = evaluation.get("tta") or {}
        names = [name if value is True else f"{name} {value}" for name, value in chosen.items() if value]
        number = evaluation.get("views", 1)
        text = "1 view of each image" if number == 1 else f"the mean of {number} views of each image"
        told.append(text + (f" ({', '.join(names)})" if names else ""))
    return told if len(set(told)) > 1 else []


def _paired(first: Subject, other: Subject, predicted: Any) -> tuple[str, dict[str, Difference]]:
    """Return the reason why two runs cannot be resampled together, or else the difference of each metric."""
    if first.folder.resolve() == other.folder.resolve():
        return "it is the same run", {}
    theirs = other.outcomes()
    if predicted is None or theirs is None:
        return "the task has no predictions that can be resampled: compare the intervals only", {}
    has_names = bool(predicted.names)
    is_same_data = first.evaluation["data"] == other.evaluation["data"]
    if not predicted.has_samples_of(theirs) or not (has_names or is_same_data):
        return UNPAIRED, {}
    how = Resampling(RESAMPLES, CONFIDENCE, SEED)
    return "", differences(predicted.scores(), theirs.scores(), len(predicted), how)
