"""Figures of a regression in the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workflow_lib.metrics.numbers import predictions_csv
from workflow_lib.tasks.regression import MAX_POINTS, chapter_values, histogram, scatter


def test_each_of_several_targets_is_drawn(tmp_path: Path) -> None:
    true = np.arange(12.0).reshape(6, 2)
    (tmp_path / "predictions.csv").write_text(predictions_csv(true + 1, true))
    figures = {figure["name"]: figure for figure in chapter_values({}, tmp_path / "predictions.csv")["figures"]}
    assert list(figures) == ["scatter-0", "errors-0", "scatter-1", "errors-1"]
    points = figures["scatter-1"]["data"][1]
    assert (points["x"], points["y"]) == (true[:, 1].tolist(), (true[:, 1] + 1).tolist())


def test_a_scatter_of_many_samples_is_thinned_out() -> None:
    many = np.arange(100_000, dtype=float).tolist()
    points = scatter("s", "S", many, many)["data"][1]["x"]
    assert len(points) == MAX_POINTS
    assert points[-1] > 99_000


def test_predictions_without_errors_can_be_drawn() -> None:
    assert sum(histogram("e", "E", [1.0, 2.0], [1.0, 2.0])["data"][0]["y"]) == 2
