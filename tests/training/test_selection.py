"""The best epoch, early stopping and reduce-on-plateau compare a metric in its own direction."""

from __future__ import annotations

import pytest

from workflow_lib.config.optimization import Plateau as PlateauSection
from workflow_lib.config.run import EarlyStopping
from workflow_lib.training.selection import Plateau, is_exhausted, update_best
from workflow_lib.training.state import Progress


def test_a_plateau_lowers_its_scale_when_its_patience_is_over() -> None:
    plateau, section = Plateau(), PlateauSection(factor=0.5, patience=1)
    scales = []
    for value in (1.0, 0.9, 0.9, 0.95, 0.91, 0.8, 0.85, 0.85):
        plateau.observe("val_loss", value, section)
        scales.append(plateau.scale)
    assert scales == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_a_plateau_of_an_accuracy_waits_for_a_higher_value() -> None:
    plateau, section = Plateau(), PlateauSection(factor=0.5, patience=1)
    for value in (0.5, 0.6, 0.7, 0.6, 0.6):
        plateau.observe("val_accuracy", value, section)
    assert (plateau.scale, plateau.best) == (0.5, 0.7)


@pytest.mark.parametrize(
    ("metric", "values", "best"), [("val_loss", (0.3, 0.2, 0.2, 0.4), 0.2), ("val_accuracy", (0.3, 0.4, 0.4, 0.2), 0.4)]
)
def test_the_best_epoch_is_the_first_with_the_best_value(metric: str, values: tuple[float, ...], best: float) -> None:
    progress = Progress()
    rows = [{"epoch": epoch, metric: value} for epoch, value in enumerate(values)]
    assert [update_best(progress, row, metric) for row in rows] == [True, True, False, False]
    assert progress.best == {"epoch": 1, metric: best}


@pytest.mark.parametrize(
    ("metric", "values"),
    [("val_loss", (1.0, 0.95, 0.85, 0.9, 0.8, 0.8)), ("val_accuracy", (0.1, 0.15, 0.25, 0.2, 0.3, 0.3))],
)
def test_early_stopping_ends_after_its_patience_without_a_change_of_min_delta(
    metric: str, values: tuple[float, ...]
) -> None:
    progress, section = Progress(), EarlyStopping.model_validate({"metric": metric, "patience": 2, "min_delta": 0.09})
    ended = [is_exhausted(progress, {metric: value}, section) for value in values]
    assert ended == [False, False, False, False, False, True]


def test_without_early_stopping_no_epoch_ends_the_run() -> None:
    assert not is_exhausted(Progress(), {"val_loss": 1.0}, None)
