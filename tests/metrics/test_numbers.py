"""Metrics of predicted numbers, against scikit-learn and scipy."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from workflow_lib.metrics import numbers as regression
from workflow_lib.metrics.bootstrap import Resampling


def numbers(samples: int, targets: int, *, far: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of a fair model, and the targets."""
    generator = np.random.default_rng(seed)
    true = generator.normal(size=(samples, targets)) * np.arange(1, targets + 1) + far
    return true + 0.3 * generator.normal(size=true.shape), true


def errors(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """The same metrics by scikit-learn."""
    return {
        "mae": metrics.mean_absolute_error(true, predicted),
        "rmse": metrics.root_mean_squared_error(true, predicted),
        "r2": metrics.r2_score(true, predicted),
    }


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("far", [0.0, 1e5])
def test_errors_equal_those_of_scikit_learn(targets: int, far: float) -> None:
    predicted, true = numbers(200, targets, far=far)
    result = regression.measure(predicted, true, Resampling(0, 0.95, 0))
    values = {name: metric["value"] for name, metric in result["metrics"].items()}
    assert values == pytest.approx(errors(predicted, true), abs=1e-9)
    for number, one in enumerate(result["per_target"]):
        assert one == pytest.approx(errors(predicted[:, [number]], true[:, [number]]), abs=1e-9)


def test_a_resample_of_numbers_is_measured_as_if_its_samples_were_written_out() -> None:
    predicted, true = numbers(50, 2, far=3.0)
    weights = np.random.default_rng(1).multinomial(50, np.full(50, 1 / 50), size=4).T.astype(np.int32)
    scores = regression.Sample(predicted, true).scores(weights)
    for number, column in enumerate(weights.T):
        written_out = errors(predicted.repeat(column, axis=0), true.repeat(column, axis=0))
        assert {name: values[number] for name, values in scores.items()} == pytest.approx(written_out, abs=1e-12)


def test_the_interval_of_an_error_is_scipys_percentile_bootstrap() -> None:
    predicted, true = numbers(200, 1)
    theirs = stats.bootstrap(
        (np.abs(predicted - true)[:, 0],), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(3)
    ).confidence_interval
    ours = regression.measure(predicted, true, Resampling(4000, 0.95, 0))["metrics"]["mae"]
    assert (ours["low"], ours["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_r2_of_targets_that_never_vary_is_null_and_says_why() -> None:
    predicted, true = numbers(30, 1)
    result = regression.measure(predicted, np.full_like(true, 0.1), Resampling(20, 0.95, 0))
    assert result["metrics"]["r2"]["value"] is None
    assert "never varies" in result["metrics"]["r2"]["reason"]
    assert result["metrics"]["mae"]["low"] is not None
    json.dumps(result, allow_nan=False)


def test_predicted_numbers_read_back_as_they_were() -> None:
    predicted, true = numbers(20, 2)
    header, *rows = csv.reader(regression.predictions_csv(predicted, true).splitlines())
    assert header == ["sample", "target_0", "predicted_0", "target_1", "predicted_1"]
    read = np.array([[float(cell) for cell in row[1:]] for row in rows])
    np.testing.assert_array_equal(read[:, ::2], true)
    np.testing.assert_array_equal(read[:, 1::2], predicted)
