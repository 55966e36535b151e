"""Runs that repeat a configuration are compared by their mean, not by the luckiest run."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tests.support.trained import Trained, with_results
from workflow_lib.results.configurations import Spread, group
from workflow_lib.results.read_runs import RunResults, load_results


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with pytest.MonkeyPatch.context() as patch:
        return with_results(tmp_path_factory.mktemp("repeated"), "regression", patch)


def made(run: RunResults, name: str, value: float, **settings: object) -> RunResults:
    """Return the results of a run with other settings and another value of the metric that ranks runs."""
    best = {**run.train["best"], "metric": run.select_metric, "value": value}
    return replace(run, name=name, settings=settings, train={**run.train, "best": best})


@pytest.fixture
def run(project: Trained) -> RunResults:
    return load_results(project.experiment, project.results, project.runs[:1], project.work)[0]


def test_the_best_mean_wins_and_not_the_luckiest_run(run: RunResults) -> None:
    # val_mae: lower is better; the best single run belongs to the worse configuration
    values = {"a": [1.0, 9.0, 8.0], "b": [5.0, 4.0, 4.6]}
    runs = [
        made(run, f"{name}{seed}", value, **{"model.name": name, "seed": seed})
        for name, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    for order in (runs, runs[::-1]):
        best, other = group(order)
        assert best.settings == {"model.name": "b"}
        assert [len(best.runs), len(other.runs)] == [3, 3]
        assert best.runs[0].name == "b2"  # 4.6 is the closest to the mean 4.53
        assert math.isclose(best.selected().mean or 0, float(np.mean(values["b"])))


def test_a_configuration_with_missing_runs_comes_last(run: RunResults) -> None:
    runs = [
        made(run, "lucky", 0.5, **{"optimizer.lr": 1.0, "seed": 0}),
        made(run, "first", 3.0, **{"optimizer.lr": 0.1, "seed": 0}),
        made(run, "second", 2.0, **{"optimizer.lr": 0.1, "seed": 1}),
    ]
    assert [configuration.runs[0].name for configuration in group(runs)] == ["second", "lucky"]


def test_runs_without_repetitions_are_ranked_as_before(run: RunResults) -> None:
    runs = [made(run, str(value), value, **{"optimizer.lr": value}) for value in (3.0, 1.0, 2.0)]
    assert [configuration.runs[0].name for configuration in group(runs)] == ["1.0", "2.0", "3.0"]


def test_the_spread_is_the_one_of_the_textbook() -> None:
    values = [0.91, 0.94, 0.9, 0.97]
    spread = Spread.of(values)
    assert math.isclose(spread.mean or 0, float(np.mean(values)))
    assert math.isclose(spread.deviation or 0, float(np.std(values, ddof=1)))
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert math.isclose(spread.low or 0, low)
    assert math.isclose(spread.high or 0, high)


def test_the_interval_ends_where_the_metric_does(run: RunResults) -> None:
    (configuration,) = group([made(run, str(seed), value, seed=seed) for seed, value in enumerate((1.0, 9.0))])
    spread = configuration.selected()  # of val_mae
    assert spread.low == 0.0
    assert (spread.high or 0.0) > 50.0


def test_a_loss_ends_at_zero_unless_it_is_the_users(run: RunResults) -> None:
    for has_own_loss in (False, True):
        by_loss = replace(run, select_metric="val_loss", has_own_loss=has_own_loss)
        (configuration,) = group([made(by_loss, str(seed), value, seed=seed) for seed, value in enumerate((1.0, 9.0))])
        assert ((configuration.selected().low or 0.0) < 0.0) == has_own_loss


def test_folds_widen_the_interval_because_they_share_samples() -> None:
    values = [0.91, 0.94, 0.9, 0.97, 0.93]
    plain, folds = Spread.of(values), Spread.of(values, folds=5)
    assert plain.deviation == folds.deviation
    widths = [(spread.high or 0) - (spread.low or 0) for spread in (plain, folds)]
    assert math.isclose(widths[1] / widths[0], math.sqrt((1 / 5 + 1 / 4) / (1 / 5)))


@pytest.mark.parametrize(("values", "mean"), [([None, 1.0], None), ([], None), ([2.0], 2.0)])
def test_what_cannot_be_computed_is_left_open(values: list[float | None], mean: float | None) -> None:
    assert Spread.of(values) == Spread(mean)


def test_the_table_and_the_page_show_the_means(project: Trained) -> None:
    # the project sweeps two seeds, which are one configuration
    with (project.results / "configurations.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    runs = load_results(project.experiment, project.results, project.runs, project.work)
    errors = [run.evaluation["metrics"]["mae"]["value"] for run in runs]
    assert row["runs"] == "2"
    assert math.isclose(float(row["mae"]), float(np.mean(errors)))
    assert math.isclose(float(row["mae_deviation"]), float(np.std(errors, ddof=1)))
    assert row["typical_run"] == runs[0].name
    page = (project.results / "report.html").read_text(encoding="utf-8")
    assert "most typical one of the best configuration" in page
    assert 'id="configurations"' in page
