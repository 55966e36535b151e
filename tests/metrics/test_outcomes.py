"""Predictions that are read back give the metrics of the evaluation, and the curves that scikit-learn draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from workflow_lib.data.names import with_names
from workflow_lib.errors import DataError
from workflow_lib.metrics import classes, labels, masks, numbers, tokens
from workflow_lib.metrics.bootstrap import Resampling
from workflow_lib.metrics.outcomes import Outcomes
from workflow_lib.report import diagrams
from workflow_lib.report.parallel import figure

ONCE = Resampling(0, 0.95, 0)
NAMES = ("a, b", "c", 'd"')
rng = np.random.default_rng(0)
LOGITS, TARGETS = (3 * rng.normal(size=(60, 3))).astype(np.float32), rng.integers(0, 3, 60)
TRUE = rng.integers(0, 2, (60, 3))
PREDICTED, NUMBERS = rng.normal(size=(60, 2)), 5 + rng.normal(size=(60, 2))
SUMS = tokens.Sums(loss=rng.uniform(1, 30, 60), correct=rng.integers(0, 16, 60), tokens=16)
HITS = rng.integers(1, 9, (60, 3))
COUNTS = masks.Counts(
    HITS, HITS + rng.integers(0, 5, (60, 3)), HITS + rng.integers(0, 5, (60, 3)), rng.uniform(size=60)
)

KINDS: dict[str, tuple[str, Callable[[Path], Outcomes], dict[str, float]]] = {
    "classes": (
        classes.predictions_csv(LOGITS, TARGETS, NAMES),
        lambda path: classes.outcomes(path, NAMES),
        classes.measure(LOGITS, TARGETS, NAMES, ONCE)["metrics"],
    ),
    "labels": (
        labels.predictions_csv(LOGITS, TRUE, NAMES),
        lambda path: labels.outcomes(path, NAMES),
        labels.measure(LOGITS, TRUE, NAMES, ONCE)["metrics"],
    ),
    "numbers": (
        numbers.predictions_csv(PREDICTED, NUMBERS, ("x", "y")),
        numbers.outcomes,
        numbers.measure(PREDICTED, NUMBERS, ONCE)["metrics"],
    ),
    "tokens": (tokens.predictions_csv(SUMS), tokens.outcomes, tokens.measure(SUMS, ONCE)["metrics"]),
    "masks": (masks.predictions_csv(COUNTS), masks.outcomes, masks.measure(COUNTS, NAMES, ONCE)["metrics"]),
}


def read(kind: str, folder: Path, sample_names: dict[str, list[str]] | None = None) -> Outcomes:
    text, reader, _ = KINDS[kind]
    path = folder / "predictions.csv"
    path.write_text(with_names(text, sample_names), encoding="utf-8")
    return reader(path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_predictions_of_a_file_give_the_metrics_of_the_evaluation(kind: str, tmp_path: Path) -> None:
    found = read(kind, tmp_path, {"file": [f"{number}, of" for number in range(60)]})
    scores = found.scores()(np.ones((60, 1), np.int32))
    measured = {name: values["value"] for name, values in KINDS[kind][2].items() if name in scores}  # type: ignore[index]
    assert measured
    assert {name: scores[name][0] for name in measured} == pytest.approx(measured, rel=1e-9)
    assert found.name_of(7) == "7, of"


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_same_only_with_equal_names_and_targets(kind: str, tmp_path: Path) -> None:
    found, named = read(kind, tmp_path), read(kind, tmp_path, {"row": [str(number) for number in range(60)]})
    assert found.has_samples_of(read(kind, tmp_path))
    assert not found.has_samples_of(named)
    assert found.name_of(3) == "sample 3"
    assert named.name_of(3) == "row 3"


def test_the_most_certain_error_is_the_wrong_class_with_the_highest_probability(tmp_path: Path) -> None:
    found = read("classes", tmp_path)
    wrong = LOGITS.argmax(axis=1) != TARGETS
    assert ((found.wrong > 0) == wrong).all()
    worst = int(found.wrong.argmax())
    told = found.told(worst)
    assert (told.true, told.predicted) == (NAMES[TARGETS[worst]], NAMES[LOGITS[worst].argmax()])
    assert told.certainty == max(np.exp(classes.log_softmax(LOGITS)).max(axis=1)[wrong])


def test_a_file_of_another_task_is_rejected_by_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(KINDS["tokens"][0])
    with pytest.raises(DataError, match="are not those of the task"):
        classes.outcomes(path, NAMES)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column `sample`"):
        numbers.outcomes(path)


def test_curves_of_a_class_are_those_of_scikit_learn() -> None:
    scores, is_true = rng.integers(0, 20, 80) / 20, rng.random(80) < 0.4  # with ties
    found = diagrams.roc(scores, is_true)
    false, true, _ = roc_curve(is_true, scores, drop_intermediate=False)
    np.testing.assert_allclose(found.x, false)
    np.testing.assert_allclose(found.y, true)
    assert found.summary == pytest.approx(roc_auc_score(is_true, scores))
    found = diagrams.precision_recall(scores, is_true)
    precision, recall, _ = precision_recall_curve(is_true, scores)
    np.testing.assert_allclose(found.x[1:], recall[-2::-1])
    np.testing.assert_allclose(found.y[1:], precision[-2::-1])
    assert found.summary == pytest.approx(average_precision_score(is_true, scores))
    assert len(diagrams.roc(rng.random(5000), rng.random(5000) < 0.5).x) <= diagrams.MAX_POINTS


def test_a_perfectly_calibrated_model_lies_on_the_diagonal() -> None:
    scores = np.repeat([0.25, 0.75], 4)
    is_true = np.array([True, False, False, False, True, True, True, False])
    found = diagrams.reliability(scores, is_true)
    assert (found.x.tolist(), found.y.tolist()) == ([0.25, 0.75], [0.25, 0.75])
    assert diagrams.calibration_error(scores, is_true) == 0
    assert diagrams.calibration_error(scores, ~is_true) == pytest.approx(0.5)


def test_parallel_coordinates_place_numbers_names_and_missing_values() -> None:
    columns = {"lr": [0.1, 0.001, 0.01], "optimizer": ["sgd", "adamw", "sgd"], "momentum": [0.9, None, 0.5]}
    made = figure("f", "F", ["x", "y", "z"], columns)
    lines = {}
    for trace in made["data"]:
        for start in range(0, len(trace["y"]), 4):
            lines[trace["hovertext"][start].split("\n")[0]] = trace["y"][start : start + 3]
    assert lines == {"x": [1.0, 1.0, 1.0], "y": [0.0, 0.0, -0.05], "z": [0.5, 1.0, 0.0]}  # lr is logarithmic
