"""Decisions after a validation: the best weights, early stopping, and reduce-on-plateau.

Their counters are fields of `Progress`, so a resume decides the same. All ranks have equal metrics, and decide alike.
`maximized` are the metrics of `training.metrics` of which a larger value is better.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workflow_lib.config.metrics import gain, is_better
from workflow_lib.errors import DivergedError

if TYPE_CHECKING:
    from workflow_lib.config.optimization import Plateau as PlateauSection
    from workflow_lib.config.run import EarlyStopping
    from workflow_lib.training.state import EpochMetrics, Progress


@dataclass
class Plateau:
    """Counters of reduce-on-plateau: the factor so far, the best value, and the validations since then."""

    scale: float = 1.0
    best: float | None = None
    bad_epochs: int = 0

    def observe(
        self, metric: str, value: float | None, section: PlateauSection, maximized: Collection[str] = ()
    ) -> None:
        """Multiply the scale by ``factor`` after more than ``section.patience`` validations without a better one."""
        if is_better(metric, value, self.best, maximized):
            self.best, self.bad_epochs = value, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > section.patience:
            self.scale *= section.factor
            self.bad_epochs = 0


def update_best(progress: Progress, row: EpochMetrics, metric: str, maximized: Collection[str] = ()) -> bool:
    """Record the validation if it is the best so far; return True if it is."""
    is_best = is_better(metric, row[metric], progress.best[metric] if progress.best else None, maximized)
    if is_best:
        progress.best = row
    return is_best


def is_exhausted(
    progress: Progress, row: EpochMetrics, section: EarlyStopping | None, maximized: Collection[str] = ()
) -> bool:
    """Count the validations without improvement; return True if early stopping ends the run here."""
    if section is None:
        return False
    value, before = row[section.metric], progress.watched
    name = section.metric
    if before is None or gain(name, value, maximized) - section.min_delta > gain(name, before, maximized):
        progress.watched, progress.bad_epochs = value, 0
    else:
        progress.bad_epochs += 1
    return progress.bad_epochs > section.patience


def check_chosen(progress: Progress, metric: str) -> None:
    """Raise DivergedError if no validation gave the metric a value, so that none of them is the best."""
    if progress.best is not None and progress.best[metric] is None:
        raise DivergedError(
            f"training.select_metric: {metric} had no finite value in any validation, so none of them is the best; "
            f"another metric may tell them apart"
        )
