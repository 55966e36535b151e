"""Two runs are compared on the same test samples, and a difference within the noise is called so."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.trained import Trained, with_results
from workflow_lib import comparison
from workflow_lib.cli.entry import main
from workflow_lib.errors import ConfigError
from workflow_lib.metrics import numbers
from workflow_lib.metrics.bootstrap import Resampling, Scores
from workflow_lib.metrics.paired import differences
from workflow_lib.results import references

HOW = Resampling(400, 0.95, 0)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with pytest.MonkeyPatch.context() as patch:
        return with_results(tmp_path_factory.mktemp("project"), "regression", patch)


def scores_of(errors: np.ndarray) -> Scores:
    targets = np.zeros((len(errors), 1))
    return numbers.Sample(targets + errors[:, None], targets).scores


def test_what_is_hard_for_both_models_is_no_noise() -> None:
    """Each sample of the second model is a little worse; the spread over the samples is a thousand times larger."""
    errors = np.random.default_rng(0).exponential(10, 200)
    found = differences(scores_of(errors), scores_of(errors + 0.01), 200, HOW)["mae"]
    assert found.value == pytest.approx(0.01)
    assert found.low == pytest.approx(0.01)
    assert found.is_more_than_noise
    shuffled = np.random.default_rng(1).permutation(errors) + 0.01
    assert differences(scores_of(errors), scores_of(shuffled), 200, HOW)["mae"].is_more_than_noise is False


def test_differences_are_the_same_each_time_and_undefined_ones_are_no_number() -> None:
    errors = np.random.default_rng(0).normal(size=50)
    found = [differences(scores_of(errors), scores_of(errors / 2), 50, HOW) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0]["r2"].value is None  # the targets never vary
    assert found[0]["r2"].is_more_than_noise is None


def test_runs_are_compared_by_name_digest_and_experiment(
    project: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.root)
    first, second = project.runs
    assert main(["compare", first, second[-12:], "digits-demo", "--html", "page.html"]) == 0
    text = capsys.readouterr().out
    assert f"B  {second[-12:]} (run {second})" in text
    assert "C  digits-demo (run " in text
    assert "over its 2 seeds or folds: mae " in text
    assert [line.split() for line in text.splitlines() if line.startswith("seed")][0][:3] == ["seed", "0", "1"]
    page = Path("page.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert f"<h1>{first} and 2 others</h1>" in page
    found = comparison.compare([comparison.find(run, Path("results"), Path("work")) for run in (first, second)])
    measured = [json.loads((project.results / "runs" / run / "evaluation.json").read_text()) for run in (first, second)]
    mae = next(metric for metric in found.metrics if metric.label == "mean absolute error")
    values = [each["metrics"]["mae"]["value"] for each in measured]
    assert mae.differences[1] is not None
    assert mae.differences[1].value == pytest.approx(values[1] - values[0])
    assert comparison.shown(found) == comparison.shown(found)
    narrow, wide = (comparison.shown(found, width).splitlines() for width in (80, 200))
    assert max(map(len, narrow)) <= 80 < max(map(len, wide))
    assert "mean absolute error" in narrow
    assert sum(line.startswith("  B  ") for line in narrow) > len(found.metrics)


def test_other_test_samples_are_not_resampled_together(project: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    first, second = project.runs
    path = project.results / "runs" / second / "predictions.csv"
    before = path.read_text(encoding="utf-8")
    rows = list(csv.reader(before.splitlines()))
    rows[1][0] = "999"  # the row of another sample
    path.write_text("\n".join(map(",".join, rows)) + "\n", encoding="utf-8")
    try:
        found = comparison.compare([comparison.find(run, Path("results"), Path("work")) for run in (first, second)])
    finally:
        path.write_text(before, encoding="utf-8")
    assert found.reasons == ["the test samples are not the same: compare the intervals only"]
    assert all(metric.differences[1] is None for metric in found.metrics)


def test_runs_that_are_evaluated_with_other_views_are_told(project: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    first, second = (comparison.find(run, Path("results"), Path("work")) for run in project.runs)
    assert not comparison.compare([first, second]).views
    tta = {"flip_horizontal": True, "flip_vertical": False, "shift": 2}
    changed = replace(second, evaluation={**second.evaluation, "views": 10, "tta": tta})  # type: ignore[typeddict-unknown-key]
    found = comparison.compare([first, changed])
    told = "B: the mean of 10 views of each image (flip_horizontal, shift 2)"
    assert {"A: 1 view of each image", told} <= set(comparison.shown(found).splitlines())
    comparison.write_page(found, project.root / "views.html")
    assert told.partition(": ")[2] in (project.root / "views.html").read_text()


def test_an_experiment_stands_for_its_best_run(
    project: Trained, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(project.root)
    caplog.set_level("INFO")
    best = Path("results/digits-demo/runs") / references.rows(Path("results/digits-demo/runs.csv"))[0]["name"]
    for ref in ("digits-demo", "results/digits-demo", best.name, str(best)):
        assert references.find_run(ref, Path("results")) == best
    said = [f"{ref}: the best run of this experiment is {best.name}" for ref in ("digits-demo", "results/digits-demo")]
    assert caplog.messages == said


def test_what_is_no_run_is_rejected_with_the_experiments_that_there_are(
    project: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.root)
    with pytest.raises(ConfigError, match="nope: no trained run .* or an experiment: digits-demo"):
        comparison.find("nope", Path("results"), Path("work"))
    assert main(["compare", project.runs[0]]) == 2
