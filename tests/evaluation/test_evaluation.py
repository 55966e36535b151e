"""Evaluation of a trained run, and what it rejects."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.trained import Trained, train
from workflow_lib import data, evaluation, tasks
from workflow_lib.config.experiment import Views
from workflow_lib.config.run import Training
from workflow_lib.errors import EverstepError, UserError
from workflow_lib.evaluation import own_metrics
from workflow_lib.files import read_json
from workflow_lib.metrics import classes
from workflow_lib.metrics.outputs import predict
from workflow_lib.results.provenance import file_digest


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("project"))


def test_an_evaluation_follows_from_its_predictions(project: Trained, tmp_path: Path) -> None:
    run = project.runs[0]
    folder = project.results / "runs" / run
    output = tmp_path / "evaluation.json"
    evaluation.evaluate(
        project.experiment,
        run=run,
        data=project.data,
        work=project.work,
        model=folder / "model.safetensors",
        output=output,
    )
    result = read_json(output)
    trained = read_json(folder / "train.json")
    assert (result["run"], result["digest"], result["data"]) == (run, trained["digest"], trained["data"])
    assert result["model"] == file_digest(folder / "model.safetensors")
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    targets = np.array([int(row["target"]) for row in rows])
    probabilities = np.array([[float(row[f"p({name})"]) for name in result["classes"]] for row in rows])
    assert [int(row["predicted"]) for row in rows] == probabilities.argmax(axis=1).tolist()
    assert result["metrics"]["accuracy"]["value"] == np.mean(probabilities.argmax(axis=1) == targets) > 0.5
    loss = -np.log(probabilities[np.arange(len(targets)), targets]).mean()
    assert result["metrics"]["log_loss"]["value"] == pytest.approx(loss, abs=1e-12)


def test_an_evaluation_with_views_says_so_and_its_predictions_are_those_of_the_mean(
    project: Trained, tmp_path: Path
) -> None:
    run, places = project.runs[0], {"data": project.data, "work": project.work}
    model = project.results / "runs" / run / "model.safetensors"
    chosen = project.experiment.evaluate.model_copy(update={"tta": Views(shift=1)})
    experiment = project.experiment.model_copy(update={"evaluate": chosen})
    found = [tmp_path / name / "evaluation.json" for name in ("alone", "mean", "again")]
    for output, settings in zip(found, (project.experiment, experiment, experiment), strict=True):
        output.parent.mkdir()
        evaluation.evaluate(settings, run=run, model=model, output=output, **places)
    alone, mean, again = (output.with_name("predictions.csv").read_text() for output in found)
    assert alone != mean == again
    assert "views" not in read_json(found[0])
    assert (read_json(found[1])["views"], read_json(found[1])["tta"]["shift"]) == (5, 1)
    assert "views" not in next(csv.reader(alone.splitlines()))
    assert {row["views"] for row in csv.DictReader(mean.splitlines())} == {"5"}
    outcomes = [classes.outcomes(path.with_name("predictions.csv"), list("0123456789")) for path in found[:2]]
    assert outcomes[0].has_samples_of(outcomes[1])


def test_the_batch_size_changes_no_prediction(project: Trained) -> None:
    run = project.runs[0]
    model = project.results / "runs" / run / "model.safetensors"
    trained = evaluation.load_trained(run, project.data, project.work, model)
    split, where = data.load_split(trained.manifest, "test", project.work), torch.device("cpu")
    single, seven, whole = (predict(trained.network, split, size, where) for size in (1, 7, 256))
    np.testing.assert_allclose(single, whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(single.argmax(axis=1), whole.argmax(axis=1))
    np.testing.assert_array_equal(seven.argmax(axis=1), whole.argmax(axis=1))


def test_an_own_loss_has_an_interval_if_it_is_of_each_sample(project: Trained) -> None:
    run, settings = project.runs[0], project.experiment.evaluate
    model = project.results / "runs" / run / "model.safetensors"
    trained = evaluation.load_trained(run, project.data, project.work, model)
    split, where = data.load_split(trained.manifest, "test", project.work), torch.device("cpu")

    def measured(loss: str, **params: float) -> dict[str, Any]:
        training = Training.model_validate({"loss": f"tests.plugins.own:{loss}", "loss_params": params})
        found = own_metrics.measure(training, trained.network, trained.manifest, split, settings, where)
        return found["own_loss"]

    of_task, _ = tasks.load("classification").evaluate(trained.network, trained.manifest, split, settings, where)
    shipped, own = of_task["metrics"]["log_loss"], measured("smoothed")
    assert [own[key] for key in ("value", "low", "high")] == pytest.approx(
        [shipped[key] for key in ("value", "low", "high")], rel=1e-6
    )
    weighted = measured("Weighted", weight=2.0)
    assert weighted["value"] == pytest.approx(2 * own["value"], rel=1e-6)
    assert (weighted["low"], weighted["high"]) == (None, None)
    assert weighted["reason"].startswith("no interval: it is one number for a batch")


def test_weights_may_be_copied_to_another_place(
    project: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model.safetensors", "train.json"):
        shutil.copy(project.results / "runs" / project.runs[0] / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    copied = evaluation.load_trained(project.runs[0], project.data, project.work, Path("model.safetensors"))
    assert copied.identity["run"] == project.runs[0]


def test_weights_of_another_run_are_refused(project: Trained) -> None:
    model = project.results / "runs" / project.runs[0] / "model.safetensors"
    with pytest.raises(UserError, match="was trained as run"):
        evaluation.load_trained(project.runs[1], project.data, project.work, model)


def test_a_diverged_model_is_refused() -> None:
    network = torch.nn.Linear(3, 2)
    inputs = torch.zeros(5, 3)
    inputs[3, 0] = torch.inf
    with pytest.raises(EverstepError, match=r"1 of 5 test samples \(first: sample 3\)"):
        predict(network, data.Split(inputs, torch.zeros(5)), 2, torch.device("cpu"))
