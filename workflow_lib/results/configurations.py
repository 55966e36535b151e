"""Runs that repeat the same settings with other seeds or folds, compared by their mean and not by the luckiest run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workflow_lib import plugins
from workflow_lib.config.identity import canonical
from workflow_lib.config.metrics import gain
from workflow_lib.config.sweep import REPEATED

if TYPE_CHECKING:
    from workflow_lib.results.read_runs import Row, RunResults

CONFIDENCE = 0.95
FOLDS = "data.folds"
UNLIMITED = (-math.inf, math.inf)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a metric over runs, and the 95 % interval of the mean; None if undefined."""

    mean: float | None
    deviation: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(
        cls, values: Sequence[float | None], folds: int | None = None, ends: tuple[float, float] = UNLIMITED
    ) -> Spread:
        """Return the spread of the values; undefined if one of them is None, which a mean would hide.

        The interval is Student's. Runs on the folds of a cross-validation share most of their training data, so that
        their variance is divided by less than their number. Source: Nadeau and Bengio, Inference for the Generalization
        Error, Machine Learning 52 (2003). It is cut to the `ends`, the smallest and the largest possible value.
        """
        numbers = [value for value in values if value is not None]
        if len(numbers) < len(values) or not numbers:
            return cls(None)
        count = len(numbers)
        mean = math.fsum(numbers) / count
        if count == 1:
            return cls(mean)
        from scipy.special import stdtrit  # scipy.stats has the same function, but takes a second to import

        variance = math.fsum((value - mean) ** 2 for value in numbers) / (count - 1)
        error = math.sqrt(variance * (1 / count + (1 / (folds - 1) if folds else 0.0)))
        reach = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * error
        return cls(mean, math.sqrt(variance), max(mean - reach, ends[0]), min(mean + reach, ends[1]))


@dataclass(frozen=True)
class Configuration:
    """The runs with the same settings apart from seed and fold, the most typical run first.

    `settings` has the values of the other settings that differ between the runs of the experiment.
    """

    settings: Row
    runs: tuple[RunResults, ...]

    @property
    def folds(self) -> int | None:
        """The number of folds of the cross-validation, or None."""
        found = self.runs[0].settings.get(FOLDS)
        return None if found is None else int(found)

    def selected(self) -> Spread:
        """Return the spread of the metric that ranks the runs."""
        metric = self.runs[0].select_metric
        is_own = metric == "val_loss" and any(run.has_own_loss for run in self.runs)
        ends = UNLIMITED if is_own else self._ends(metric.removeprefix("val_"))
        return Spread.of([run.best()[0] for run in self.runs], self.folds, ends)

    def measured(self, name: str) -> Spread:
        """Return the spread of a metric of the test split."""
        values = [run.evaluation["metrics"].get(name, {}).get("value") for run in self.runs]
        return Spread.of(values, self.folds, self._ends(name))

    def _ends(self, metric: str) -> tuple[float, float]:
        return plugins.task_facts(self.runs[0].task).ranges.get(metric, UNLIMITED)

    def row(self) -> Row:
        """Return the row of configurations.csv."""
        first = self.runs[0]
        row: dict[str, Any] = {**self.settings, "runs": len(self.runs), "select_metric": first.select_metric}
        named = {"select_value": self.selected()}
        named |= {name: self.measured(name) for name in first.metrics}
        for name, spread in named.items():
            row |= {name: spread.mean, f"{name}_deviation": spread.deviation}
            row |= {f"{name}_low": spread.low, f"{name}_high": spread.high}
        return row | {"typical_run": first.name}


def group(runs: Sequence[RunResults]) -> list[Configuration]:
    """Return the configurations of the runs, the best first by the mean of the metric that ranks the runs.

    Those with fewer runs than others come last: the missing ones diverged or were never trained, and the mean of the
    rest says too little.
    """
    alike: dict[str, list[RunResults]] = {}
    for run in runs:
        alike.setdefault(canonical(_own_settings(run)), []).append(run)
    found = [Configuration(_own_settings(same[0]), _typical_first(same)) for same in alike.values()]
    most = max((len(configuration.runs) for configuration in found), default=0)
    return sorted(found, key=lambda configuration: (len(configuration.runs) < most, _rank(configuration)))


def _own_settings(run: RunResults) -> Row:
    return {name: value for name, value in run.settings.items() if name not in REPEATED}


def _rank(configuration: Configuration) -> tuple[float, float]:
    """Return a sort key: the best mean first, ties by the lowest validation loss of a run."""
    mean = configuration.selected().mean
    first = configuration.runs[0]
    ties = min(run.rank()[1] for run in configuration.runs)
    return (math.inf if mean is None else -gain(first.select_metric, mean, first.maximized)), ties


def _typical_first(runs: Sequence[RunResults]) -> tuple[RunResults, ...]:
    """Return the runs by rank, but first the one whose value is closest to their mean."""
    ranked = sorted(runs, key=lambda run: run.rank())
    mean = math.fsum(run.best()[0] for run in ranked) / len(ranked)
    typical = min(ranked, key=lambda run: abs(run.best()[0] - mean))
    return (typical, *(run for run in ranked if run is not typical))
