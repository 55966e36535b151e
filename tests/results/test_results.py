"""Evaluation, export and report of a regression and of a language model, with one trained project each."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas
import pytest
import torch
from markupsafe import escape
from sklearn import metrics

from tests.support.report_page import COUNT_DRAWN, in_browser, needs_chromium, own_part, unpacked
from tests.support.trained import Trained, with_results
from workflow_lib import evaluation, report
from workflow_lib.data import Manifest, Split, load_split, map_split
from workflow_lib.errors import EverstepError
from workflow_lib.export.comparison import compared
from workflow_lib.files import read_json
from workflow_lib.tasks.language import generate, predict


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with pytest.MonkeyPatch.context() as patch:
        return with_results(tmp_path_factory.mktemp("numbers"), "regression", patch)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with pytest.MonkeyPatch.context() as patch:
        return with_results(tmp_path_factory.mktemp("text"), "language", patch)


def folder_of(project: Trained, run: str) -> Path:
    return project.results / "runs" / run


def best_of(project: Trained) -> Path:
    with (project.results / "runs.csv").open(encoding="utf-8", newline="") as file:
        return folder_of(project, next(csv.DictReader(file))["name"])


def page_of(project: Trained) -> str:
    return own_part((project.results / "report.html").read_text(encoding="utf-8"))


def table_of(folder: Path) -> np.ndarray:
    """Return the columns of predictions.csv behind those that name the samples."""
    return pandas.read_csv(folder / "predictions.csv").loc[:, "sample":].to_numpy().T


def held_out(project: Trained) -> tuple[Manifest, Split]:
    manifest = Manifest.load(project.data)
    return manifest, load_split(manifest, "test", project.work, in_memory=True)


def session_of(folder: Path) -> Any:
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


def metadata(session: Any, name: str) -> Any:
    return json.loads(session.get_modelmeta().custom_metadata_map[f"everstep.{name}"])


# Numbers


def test_metrics_of_a_regression_are_in_the_units_of_the_data(numbers: Trained) -> None:
    measured = read_json(best_of(numbers) / "evaluation.json")
    _, true, predicted = table_of(best_of(numbers))
    values = {name: metric["value"] for name, metric in measured["metrics"].items()}
    expected = {
        "mae": metrics.mean_absolute_error(true, predicted),
        "rmse": metrics.root_mean_squared_error(true, predicted),
        "r2": metrics.r2_score(true, predicted),
    }
    assert values == pytest.approx(expected)
    assert true.min() > 200_000
    assert measured["metrics"]["r2"]["low"] > 0.5
    np.testing.assert_allclose(true, true.round(-1), rtol=1e-6)  # the prices of the table


def test_the_exported_model_predicts_in_the_units_of_the_data(numbers: Trained) -> None:
    session, (manifest, _) = session_of(best_of(numbers)), held_out(numbers)
    stored = map_split(manifest, "test", numbers.work).stored(slice(None))
    columns = {
        "numbers": stored[:, [0, 2]].astype(np.float64),
        "categories": np.array([["flat"], ["house"]], object)[stored[:, 1].astype(int) - 2],
    }
    given = np.asarray(session.run(["predictions"], columns)[0])
    np.testing.assert_allclose(given[:, 0], table_of(best_of(numbers))[2], rtol=1e-5)
    assert metadata(session, "target")["mean"] == list(manifest.target_mean)
    features = metadata(session, "features")
    assert [feature["name"] for feature in features] == ["area", "kind", "age", "age is missing"]
    assert features[1]["categories"][-2:] == ["flat", "house"]


def test_the_tolerance_of_a_regression_is_in_standard_deviations_of_the_target() -> None:
    expected, given = np.array([[250_000.0], [0.0]]), np.array([[250_000.0], [4.0]])
    where = {"where": "here", "rtol": 0.0, "has_labels": False}
    assert compared(expected, given, atol=1e-4 * np.array([50_000.0]), **where).agreement is None
    with pytest.raises(EverstepError, match="sample 1, target 0"):
        compared(expected, given, atol=1e-4 * np.array([30_000.0]), **where)


def test_the_report_of_a_regression_has_its_own_chapter_and_figures(numbers: Trained) -> None:
    page, rows = page_of(numbers), table_of(best_of(numbers))
    assert '<section id="predictions"' in page
    assert '<section id="classes"' not in page
    assert "<figcaption>Mean absolute error</figcaption>" in page
    data = json.loads(unpacked(page, "data"))
    figures = {figure["name"]: figure for figure in data["figures"]}
    assert figures["scatter-0"]["data"][1]["y"] == rows[2].tolist()
    assert sum(figures["errors-0"]["data"][0]["y"]) == rows.shape[1]
    assert data["curves"][0]["val_mae"][-1] > 0


def test_runs_of_a_regression_are_ranked_by_the_error(numbers: Trained) -> None:
    with (numbers.results / "runs.csv").open(encoding="utf-8", newline="") as file:
        values = [float(row["select_value"]) for row in csv.DictReader(file)]
    assert len(values) == 2
    assert values == sorted(values)
    summary = report.summary(numbers.results)
    assert "mean absolute error" in summary
    assert "R²" in summary
    assert "accuracy" not in summary


# Texts


def test_perplexity_follows_from_the_loss_of_the_tokens(text: Trained) -> None:
    measured = read_json(best_of(text) / "evaluation.json")["metrics"]
    _, tokens, loss, accuracy = table_of(best_of(text))
    assert measured["loss"]["value"] == pytest.approx(np.average(loss, weights=tokens))
    assert measured["perplexity"]["value"] == pytest.approx(np.exp(measured["loss"]["value"]))
    assert measured["accuracy"]["value"] == pytest.approx(accuracy.mean())
    assert accuracy.mean() > 0.3
    assert 1 < measured["perplexity"]["value"] < 30


def test_training_and_evaluation_compute_the_same_validation_loss(text: Trained) -> None:
    trained = trained_model(text)
    split = load_split(trained.manifest, "val", text.work, in_memory=True)
    sums = predict(trained.network, [split.batch(slice(0, None))[0]], torch.device("cpu"))
    best = read_json(best_of(text) / "train.json")["best"]["value"]
    assert sums.loss.sum() / sums.tokens / len(sums.loss) == pytest.approx(best, rel=1e-5)


def trained_model(project: Trained) -> evaluation.TrainedModel:
    run = best_of(project).name
    return evaluation.load_trained(run, project.data, project.work, best_of(project) / "model.safetensors")


def test_the_exported_model_takes_tokens_of_any_batch_and_length(text: Trained) -> None:
    session, (manifest, split) = session_of(best_of(text)), held_out(text)
    network = trained_model(text).network
    tokens = split.batch(slice(0, 7))[0]
    for samples, length in ((1, 16), (7, 16), (3, 1), (2, 5)):
        inputs = tokens[:samples, :length]
        with torch.inference_mode():
            expected = network(inputs).numpy()
        given = np.asarray(session.run(["logits"], {"tokens": inputs.numpy()})[0])
        np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-4)
    assert metadata(session, "vocabulary") == list(manifest.vocabulary)
    statement = read_json(best_of(text) / "export.json")
    assert statement["onnx"]["inputs"] == {"tokens": ["batch", "sequence"]}
    assert statement["onnx"]["outputs"] == {
        "logits": ["batch", "sequence", len(manifest.vocabulary)],
        "probabilities": ["batch", len(manifest.vocabulary)],
    }
    assert {row.get("sequence") for row in statement["check"]["batches"]} == {None, 1, 8}


def test_a_wrong_logit_of_a_text_is_reported_with_its_position() -> None:
    expected = np.zeros((2, 3, 4), dtype=np.float32)
    given = expected.copy()
    given[1, 2, 3] = 1.0
    with pytest.raises(EverstepError, match="sample 5, place 2, token 3"):
        compared(expected, given, "here", atol=1e-4, rtol=0.0, first=4)


def test_equal_passages_with_a_high_loss_are_shown_once(text: Trained) -> None:
    shown = re.findall(r'<td class="passage"><code>(.*?)</code>', page_of(text))
    assert len(shown) == len(set(shown)) > 1


def test_the_report_shows_generated_text_escaped(text: Trained) -> None:
    page, generated = page_of(text), read_json(best_of(text) / "evaluation.json")["generated"]
    assert generated["prompt"] in (text.root / "rhyme.txt").read_text()
    assert "<code><span" in page
    assert str(escape(generated["text"])) in page
    assert '<section id="text"' in page
    trained = trained_model(text)
    manifest, split = held_out(text)
    prompt = split.batch(slice(0, 1))[0][0, :16]
    tokens = generate(trained.network, prompt, 16, generated["seed"], torch.device("cpu"))
    assert "".join(manifest.vocabulary[token] for token in tokens) == generated["text"]


@needs_chromium
@pytest.mark.parametrize(("task", "figures"), [("numbers", 6), ("text", 2)])
def test_a_browser_draws_every_figure_of_a_task(
    task: str, figures: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    project: Trained = request.getfixturevalue(task)
    copy = tmp_path / "report.html"
    shutil.copy(project.results / "report.html", copy)
    document = in_browser(copy, tmp_path / "browser", COUNT_DRAWN)
    assert document.partition("<title>")[2].partition("</title>")[0] == f"{figures} of {figures} drawn"


def test_a_small_test_split_is_noted_beside_the_metrics(numbers: Trained) -> None:
    samples = read_json(folder_of(numbers, numbers.runs[0]) / "evaluation.json")["samples"]
    assert samples < 50
    caution = f"only {samples} test samples"
    assert f"; {caution}" in report.summary(numbers.results)
    page = page_of(numbers)
    assert page.count(f'<small class="caution">{caution}</small>') == 3  # of the best run: mae, rmse, r2
    assert page.count(f'<span class="interval caution">{caution}</span>') == len(numbers.runs)
    assert f"Measured on only {samples} test samples" in " ".join(page.split())
