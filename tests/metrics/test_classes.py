"""Metrics of predicted classes, against scikit-learn and scipy."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from workflow_lib.metrics import classes as classification
from workflow_lib.metrics.bootstrap import Resampling

CLASSES = 4


def guesses(samples: int, classes: int, seed: int = 0, decimals: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a fair model, and the targets; few decimals make ties."""
    generator = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(classes), generator.integers(0, classes, samples - classes)])
    logits = generator.normal(size=(samples, classes)) + 1.5 * np.eye(classes)[targets]
    return logits.round(decimals).astype(np.float32), targets


def expected(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The same metrics by scikit-learn."""
    probabilities = np.exp(classification.log_softmax(logits))
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
    return classification.measure(logits, targets, names, Resampling(resamples, 0.95, seed))


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
    scores = classification.Sample(logits, targets).scores(weights)
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


@pytest.mark.parametrize(("right", "samples"), [(True, 36), (False, 36), (True, 3)])
def test_a_proportion_of_none_or_all_has_the_exact_interval(right: bool, samples: int) -> None:
    """Drawing again would give an interval of no width, however few samples there are."""
    from scipy.stats import binomtest

    targets = np.arange(samples) % 2
    logits = np.eye(2, dtype=np.float32)[targets if right else 1 - targets] * 9
    measured = classification.measure(logits, targets, ["a", "b"], Resampling(50, 0.95, 0))["metrics"]["accuracy"]
    expected = binomtest(samples * right, samples).proportion_ci(0.95, method="exact")
    assert (measured["low"], measured["high"]) == pytest.approx((expected.low, expected.high))
    none = classification.measure(logits, targets, ["a", "b"], Resampling(0, 0.95, 0))["metrics"]["accuracy"]
    assert none["low"] is None


def test_equal_seeds_give_equal_intervals_and_other_seeds_others() -> None:
    logits, targets = guesses(100, CLASSES)
    one, again, other = (measure(logits, targets, 300, seed)["metrics"] for seed in (0, 0, 1))
    assert one == again
    assert one["log_loss"]["low"] != other["log_loss"]["low"]


def test_an_undefined_auc_is_null_and_says_why() -> None:
    logits, targets = guesses(50, CLASSES)
    targets[:] = 2
    result = measure(logits, targets, resamples=50)
    assert result["metrics"]["roc_auc"]["value"] is None
    assert "class 1" in result["metrics"]["roc_auc"]["reason"]
    assert result["per_class"][1]["roc_auc"] is None
    assert result["per_class"][1]["recall"] is None
    json.dumps(result, allow_nan=False)


def test_metrics_of_a_split_that_lacks_a_class_say_for_which_classes_they_are() -> None:
    logits, targets = guesses(60, CLASSES)
    targets[targets == 2] = 0
    logits[:, 2] = -10
    result = measure(logits, targets, resamples=50)
    others = [name for number, name in enumerate(result["classes"]) if number != 2]
    assert result["absent_classes"] == [result["classes"][2]]
    assert result["metrics"]["roc_auc"]["classes"] == result["metrics"]["macro_f1"]["classes"] == others
    areas = [metrics.roc_auc_score(targets == label, classification.log_softmax(logits)[:, label])
             for label in range(CLASSES) if label != 2]  # fmt: skip
    assert result["metrics"]["roc_auc"]["value"] == pytest.approx(np.mean(areas), abs=1e-12)
    assert result["per_class"][2]["support"] == 0
    assert result["per_class"][2]["recall"] is None
    assert "classes" not in measure(*guesses(60, CLASSES))["metrics"]["roc_auc"]
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


def test_probabilities_read_back_as_the_same_numbers() -> None:
    logits, targets = guesses(20, CLASSES)
    text = classification.predictions_csv(logits, targets, ["a", "b", 'c, "quoted"', "ü"])
    header, *rows = csv.reader(text.splitlines())
    assert header[-2:] == ['p(c, "quoted")', "p(ü)"]
    read = np.array([[float(cell) for cell in row[3:]] for row in rows])
    np.testing.assert_array_equal(read, np.exp(classification.log_softmax(logits)))
