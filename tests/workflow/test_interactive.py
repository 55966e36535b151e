"""The results of a finished pipeline in Python: data frames, model and data."""

from __future__ import annotations

import csv
import shutil

import pandas
import pytest
import torch

import workflow_lib
from tests.workflow.conftest import Project
from workflow_lib import Experiment, TrainedRun, UserError


@pytest.fixture
def tiny(finished: Project, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Return the experiment of the finished pipeline: two runs, and a study."""
    monkeypatch.chdir(finished.folder)
    return workflow_lib.load("config/tiny.yaml")


def test_the_table_of_runs_is_that_of_the_report(tiny: Experiment) -> None:
    results = tiny.results()
    with open("results/tiny/runs.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [*results.runs.index] == [run.name for run in results] == [row["name"] for row in written]
    assert [f"{value}" for value in results.runs["accuracy_low"]] == [row["accuracy_low"] for row in written]
    assert results.best.name == written[0]["name"]
    assert results[str(written[0]["digest"])[:6]].name == written[0]["name"]
    assert {*results.history["run"]} == {*results.runs.index}
    assert len(results.history) == 2 * len(results)


def test_the_plan_knows_what_is_finished(tiny: Experiment) -> None:
    plan = tiny.plan()
    assert [*plan.cost["state"]] == ["finished", "finished"]
    assert [*plan.cost["steps"]] == [run.training["steps"] for name in plan for run in [tiny.results()[name]]]
    assert [*plan.cost["parameters"]] == [tiny.results()[name].training["parameters"] for name in plan]
    states = tiny.status()
    assert [*states["state"]] == ["finished"] * len(states)
    assert [*states.index[:2]] == [*plan]
    assert len(states) == 4  # two runs of the plan, and two trials
    new = workflow_lib.load("config/tiny.yaml", {"seed": 5})
    assert [*new.plan().cost["state"]] == [*new.status()["state"][:2]] == ["new", "new"]


def test_the_study_of_other_settings_has_no_result(tiny: Experiment) -> None:
    assert "tuned" in [run.name for run in tiny.results()]
    other = workflow_lib.load("config/tiny.yaml", {"tune.seed": 7}).results()
    assert "tuned" not in [run.name for run in other]
    assert other.runs.loc["tuned", "state"] == "not trained"


def test_a_run_without_an_evaluation_is_listed_with_the_reason(tiny: Experiment) -> None:
    best = tiny.results().best
    (best.folder / "evaluation.json").unlink()
    results = tiny.results()
    assert results.runs.loc[best.name, "state"] == "not evaluated"
    assert best.name not in [run.name for run in results]
    with pytest.raises(UserError, match=f"^{best.name}: not evaluated"):
        results[best.name]
    with pytest.raises(UserError, match="is not evaluated yet"):
        _ = workflow_lib.open_run(best.name).metrics
    shutil.rmtree("results/tiny/runs")
    with pytest.raises(UserError, match="no run has a result yet\ntiny-.*: not trained"):
        _ = tiny.results().best


def test_the_model_and_the_data_give_the_metrics_of_the_report(tiny: Experiment) -> None:
    best = tiny.results().best
    before = torch.random.get_rng_state()
    model, test = best.model(), best.data("test")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.training
    inputs, targets = test.batch(slice(0, len(test)))
    predicted = model(inputs).argmax(dim=1)
    assert (predicted == targets).double().mean().item() == pytest.approx(best.metrics.loc["accuracy", "value"])
    assert best.predictions["predicted"].tolist() == predicted.tolist()
    assert best.predictions["target"].tolist() == targets.tolist()
    assert sum(len(best.data(split)) for split in ("train", "val", "test")) == 1797
    with pytest.raises(UserError, match="split 'tset': allowed: train, val, test"):
        best.data("tset")


def test_a_sample_may_be_called_na(tiny: Experiment) -> None:
    run = tiny.results().best
    (run.folder / "predictions.csv").write_text("file,sample,target,p(0)\nNA,0,1,0.1234567890123456789\n001,1,0,\n")
    table = TrainedRun(run.folder).predictions
    assert table["file"].tolist() == ["NA", "001"]
    assert table["p(0)"][0] == float("0.1234567890123456789")
    assert table["p(0)"].isna().tolist() == [False, True]
    assert table["target"].tolist() == [1, 0]


def test_the_comparison_is_that_of_the_command(tiny: Experiment, finished: Project) -> None:
    first, second, *_ = tiny.results()
    compared = workflow_lib.compare(first, second.name)
    printed = finished.everstep("compare", first.name, second.name).stdout
    assert f"{compared!r}\n" == printed
    of_first, of_second = (compared.metrics.loc[("accuracy", run.name)] for run in (first, second))
    assert pandas.isna(of_first["difference"])
    assert of_second["difference"] == pytest.approx(of_second["value"] - of_first["value"])
    assert of_second["difference_low"] <= of_second["difference"] <= of_second["difference_high"]
    assert compared.write_page("compared.html").read_text().startswith("<!doctype html>")
    with pytest.raises(UserError, match="name at least two"):
        workflow_lib.compare(first)
