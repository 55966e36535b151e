from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from tests.trained import Trained, train
from workflow_lib import evaluation
from workflow_lib.errors import EverstepError, UserError
from workflow_lib.files import read_json
from workflow_lib.provenance import file_digest

CLASSES = 4


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("project"))


def guesses(samples: int, classes: int, seed: int = 0, decimals: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a fair model, and the targets; few decimals make ties."""
    generator = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(classes), generator.integers(0, classes, samples - classes)])
    logits = generator.normal(size=(samples, classes)) + 1.5 * np.eye(classes)[targets]
    return logits.round(decimals).astype(np.float32), targets


def expected(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The same metrics by scikit-learn."""
    probabilities = np.exp(evaluation.log_softmax(logits))
    predicted = logits.argmax(axis=1)
    scores = probabilities if logits.shape[1] > 2 else probabilities[:, 1]
    return {
        "accuracy": metrics.accuracy_score(targets, predicted),
        "macro_f1": metrics.f1_score(targets, predicted, average="macro"),
        "roc_auc": metrics.roc_auc_score(targets, scores, multi_class="ovr"),
        "log_loss": metrics.log_loss(targets, probabilities),
    }


def measure(logits: np.ndarray, targets: np.ndarray, resamples: int = 0, seed: int = 0) -> dict:
    names = [f"class {label}" for label in range(logits.shape[1])]
    return evaluation.measure(logits, targets, names, resamples=resamples, confidence=0.95, seed=seed)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("decimals", [8, 0])
def test_metrics_equal_those_of_scikit_learn(classes: int, decimals: int) -> None:
    logits, targets = guesses(300, classes, decimals=decimals)
    result = measure(logits, targets)
    values = {name: metric["value"] for name, metric in result["metrics"].items()}
    assert values == pytest.approx(expected(logits, targets), abs=1e-12)
    predicted = logits.argmax(axis=1)
    assert result["confusion"] == metrics.confusion_matrix(targets, predicted).tolist()
    table = metrics.precision_recall_fscore_support(targets, predicted)
    for name, column in zip(("precision", "recall", "f1", "support"), table, strict=True):
        assert [row[name] for row in result["per_class"]] == pytest.approx(column.tolist())


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("decimals", [8, 0])
def test_a_resample_is_measured_as_if_its_samples_were_written_out(classes: int, decimals: int) -> None:
    logits, targets = guesses(60, classes, decimals=decimals)
    weights = np.random.default_rng(1).integers(0, 4, (60, 5)).astype(np.int32)
    weights[:classes] += 1
    for column in weights.T:  # as many samples as there are, as in a bootstrap
        column[-1] += max(0, 60 - column.sum())
        while column.sum() > 60:
            column[column.argmax()] -= 1
    scores = evaluation.Sample(logits, targets).scores(weights)
    for number, column in enumerate(weights.T):
        written_out = expected(logits.repeat(column, axis=0), targets.repeat(column))
        assert {name: values[number] for name, values in scores.items()} == pytest.approx(written_out, abs=1e-12)


def test_intervals_are_those_of_scipys_percentile_bootstrap() -> None:
    logits, targets = guesses(200, CLASSES)
    right = (logits.argmax(axis=1) == targets).astype(float)
    generator = np.random.default_rng(3)
    theirs = stats.bootstrap(
        (right,), np.mean, method="percentile", n_resamples=4000, rng=generator
    ).confidence_interval
    ours = measure(logits, targets, resamples=4000)["metrics"]["accuracy"]
    assert (ours["low"], ours["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_equal_seeds_give_equal_intervals_and_other_seeds_others() -> None:
    logits, targets = guesses(100, CLASSES)
    one, again, other = (measure(logits, targets, 300, seed)["metrics"] for seed in (0, 0, 1))
    assert one == again
    assert one["log_loss"]["low"] != other["log_loss"]["low"]


def test_an_undefined_auc_is_null_and_says_why() -> None:
    logits, targets = guesses(50, CLASSES)
    targets[targets == 2] = 0
    result = measure(logits, targets, resamples=50)
    assert result["metrics"]["roc_auc"]["value"] is None
    assert "class 2" in result["metrics"]["roc_auc"]["reason"]
    assert result["per_class"][2]["roc_auc"] is None and result["per_class"][2]["recall"] is None
    json.dumps(result, allow_nan=False)


def test_a_class_that_occurs_nowhere_is_left_out_of_the_mean_f1() -> None:
    logits, targets = guesses(50, CLASSES)
    targets[targets == 2] = 0
    logits[:, 2] = -10
    by_scikit_learn = metrics.f1_score(targets, logits.argmax(axis=1), average="macro")
    assert measure(logits, targets)["metrics"]["macro_f1"]["value"] == pytest.approx(by_scikit_learn, abs=1e-12)


def test_resamples_without_a_class_are_left_out_and_counted() -> None:
    logits, targets = guesses(40, CLASSES)
    targets[targets == 3] = 0
    targets[7] = 3
    auc = measure(logits, targets, resamples=400)["metrics"]["roc_auc"]
    assert 0.25 < auc["undefined_resamples"] / 400 < 0.5  # (1 - 1/40) ** 40 = 0.36
    assert auc["low"] <= auc["value"] <= auc["high"]


def test_certain_and_wrong_is_a_large_loss_and_not_infinite() -> None:
    logits = np.array([[300.0, -300.0], [-300.0, 300.0]], dtype=np.float32)
    assert measure(logits, np.array([1, 0]))["metrics"]["log_loss"]["value"] == 600.0


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


def test_the_batch_size_changes_no_prediction(project: Trained) -> None:
    from workflow_lib import shards

    run = project.runs[0]
    model = project.results / "runs" / run / "model.safetensors"
    subject = evaluation.load_subject(run, project.data, project.work, model)
    inputs = shards.load_split(subject.manifest, "test", project.work).inputs
    one, seven, all_at_once = (evaluation.predict(subject.network, inputs, size) for size in (1, 7, 256))
    np.testing.assert_allclose(one, all_at_once, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(one.argmax(axis=1), all_at_once.argmax(axis=1))
    np.testing.assert_array_equal(seven.argmax(axis=1), all_at_once.argmax(axis=1))


def test_probabilities_read_back_as_the_same_numbers() -> None:
    logits, targets = guesses(20, CLASSES)
    text = evaluation.predictions_csv(logits, targets, ["a", "b", 'c, "quoted"', "ü"])
    header, *rows = csv.reader(text.splitlines())
    assert header[-2:] == ['p(c, "quoted")', "p(ü)"]
    read = np.array([[float(cell) for cell in row[3:]] for row in rows])
    np.testing.assert_array_equal(read, np.exp(evaluation.log_softmax(logits)))


def test_weights_of_another_run_are_refused(project: Trained) -> None:
    model = project.results / "runs" / project.runs[0] / "model.safetensors"
    with pytest.raises(UserError, match="was trained as run"):
        evaluation.load_subject(project.runs[1], project.data, project.work, model)


def test_a_diverged_model_is_refused() -> None:
    import torch

    network = torch.nn.Linear(3, 2)
    inputs = torch.zeros(5, 3)
    inputs[3, 0] = torch.inf
    with pytest.raises(EverstepError, match=r"1 of 5 test samples \(first: sample 3\)"):
        evaluation.predict(network, inputs, 2)
