"""Metrics of labels, against scikit-learn, and how samples with labels are divided."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from tests.support.prepared import shapes
from workflow_lib import data, tasks
from workflow_lib.data import from_arrays
from workflow_lib.data.splits import strata_of
from workflow_lib.errors import DataError
from workflow_lib.metrics import labels
from workflow_lib.metrics.bootstrap import Resampling

RANDOM = np.random.default_rng(0)
TARGETS = (RANDOM.random((80, 3)) < (0.2, 0.5, 0.7)).astype(np.uint8)
LOGITS = np.round(RANDOM.normal(size=(80, 3)) + TARGETS, 1).astype(np.float32)  # rounded: some scores are equal


def test_metrics_equal_those_of_scikit_learn() -> None:
    measured = labels.measure(LOGITS, TARGETS, "abc", Resampling(50, 0.9, 0))
    values = {name: metric["value"] for name, metric in measured["metrics"].items()}
    predicted, shares = LOGITS > 0, labels.sigmoid(LOGITS)
    assert values == pytest.approx(
        {
            "macro_f1": metrics.f1_score(TARGETS, predicted, average="macro"),
            "micro_f1": metrics.f1_score(TARGETS, predicted, average="micro"),
            "mean_average_precision": metrics.average_precision_score(TARGETS, shares),
            "roc_auc": metrics.roc_auc_score(TARGETS, shares),
            "subset_accuracy": metrics.accuracy_score(TARGETS, predicted),
            "log_loss": -(TARGETS * np.log(shares) + (1 - TARGETS) * np.log(1 - shares)).mean(),
        }
    )
    assert tuple(values) == tuple(tasks.load("multilabel").metrics)
    assert all(metric["low"] < metric["value"] < metric["high"] for metric in measured["metrics"].values())


def test_a_label_that_no_sample_has_is_named_and_has_no_ratio() -> None:
    targets = TARGETS.copy()
    targets[:, 1] = 0
    measured = labels.measure(LOGITS, targets, "abc", Resampling(0, 0.9, 0))
    assert measured["absent_classes"] == ["b"]
    assert measured["per_label"][1]["average_precision"] is None
    json.dumps(measured, allow_nan=False)


def test_rows_are_divided_by_their_rarest_label() -> None:
    targets = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [1, 0, 0], [1, 0, 1]])
    source = from_arrays(np.zeros((6, 2), np.float32), targets, classes="abc", task="multilabel")
    strata = strata_of(source, targets)
    assert strata[1] == strata[4]
    assert strata[3] == strata[5]
    assert len({strata[number] for number in (0, 1, 2, 3)}) == 4


def test_labels_of_an_npz_file_are_stored_and_counted(tmp_path: Path) -> None:
    images = RANDOM.integers(0, 255, (80, 4, 4)).astype(np.uint8)
    np.savez(tmp_path / "t.npz", train_images=images, train_labels=TARGETS)
    settings = {"name": "npz", "params": {"path": "t.npz", "task": "multilabel", "classes": ["a", "b", "c"]}}
    manifest = data.prepare(settings, tmp_path, tmp_path / "work")
    assert shapes(manifest) == data.ModelSpec((1, 4, 4), 3, "multilabel")
    counts = np.array([split.per_class for split in manifest.splits.values()]).sum(axis=0)
    assert counts.tolist() == TARGETS.sum(axis=0).tolist()
    targets = data.load_split(manifest, "train", tmp_path / "work").targets
    assert targets.numpy().sum(axis=0).tolist() == list(manifest.splits["train"].per_class)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (TARGETS[:, 0], r"shape \(80,\); allowed: \(n, classes\), 0 or 1 for each class"),
        (TARGETS * 2, "the label 2 is neither 0 nor 1"),
        (np.ones((80, 4), np.uint8), "has 4 labels, and data.params.classes has 3 names"),
    ],
)
def test_labels_that_do_not_fit_are_rejected(tmp_path: Path, given: np.ndarray, message: str) -> None:
    images = RANDOM.integers(0, 255, (80, 4, 4)).astype(np.uint8)
    np.savez(tmp_path / "t.npz", train_images=images, train_labels=given)
    settings = {"name": "npz", "params": {"path": "t.npz", "task": "multilabel", "classes": ["a", "b", "c"]}}
    with pytest.raises(DataError, match=message):
        data.prepare(settings, tmp_path, tmp_path / "work")
