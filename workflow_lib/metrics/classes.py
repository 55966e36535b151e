"""Metrics of predicted classes. Probabilities are the float64 softmax of the model's float32 logits."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workflow_lib.metrics.bootstrap import Resampling, intervals
from workflow_lib.metrics.outcomes import Outcomes, Told, check_columns, read


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithms of the probabilities, float64 [n, classes]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def measure(logits: np.ndarray, targets: np.ndarray, class_names: Sequence[str], how: Resampling) -> dict[str, Any]:
    """Return metrics with percentile bootstrap intervals, the per-class table and the confusion matrix.

    Samples are drawn with replacement from the whole test split, not class by class: the class counts of a
    test split are as random as its samples. A resample that lacks a class has no ROC AUC: it is left out of that
    interval and counted in `undefined_resamples`.

    `absent_classes` lists classes without a sample in the split; the ROC AUC is the mean over the others. A metric
    that is a mean over some of the classes only lists them in its `classes`.
    """
    sample = Sample(logits, targets)
    ones = np.ones((len(targets), 1), dtype=np.int32)
    confusion = sample.confusion(ones)[..., 0]
    metrics = intervals(sample.scores, len(targets), how, reasons=sample.undefined(class_names))
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    for name, counted in (("macro_f1", support + predicted > 0), ("roc_auc", support > 0)):
        if not counted.all() and metrics[name]["value"] is not None:
            metrics[name]["classes"] = [label for label, is_in in zip(class_names, counted, strict=True) if is_in]
    return {
        "metrics": metrics,
        "bootstrap": how.describe(),
        "classes": list(class_names),
        "absent_classes": [name for name, count in zip(class_names, support, strict=True) if not count],
        "per_class": _per_class(confusion, sample.class_auc(ones)[:, 0], class_names),
        "confusion": confusion.tolist(),
    }


class Sample:
    """A test split, prepared so that each metric is a function of the weights of the samples.

    Weights are integers [samples, columns], one column a resample: reordering samples then moves whole rows,
    and a thousand resamples of 10,000 samples and 10 classes take a second.
    """

    def __init__(self, logits: np.ndarray, targets: np.ndarray) -> None:
        log_probabilities = log_softmax(logits)
        self.targets = targets
        self.loss = -np.take_along_axis(log_probabilities, targets[:, None], axis=1)[:, 0]
        self.classes = logits.shape[1]
        # sorted by cell of the confusion matrix, the counts of a cell are the sum of adjacent rows
        cells = targets * self.classes + logits.argmax(axis=1)
        self.by_cell = np.argsort(cells, kind="stable")
        self.cells, self.cell_starts = np.unique(cells[self.by_cell], return_index=True)
        # with two classes, both columns order the samples in the same way
        self.scored = (1,) if self.classes == 2 else tuple(range(self.classes))
        self.rankings = [_Ranking(log_probabilities[:, label], targets == label) for label in self.scored]
        self.present = np.array([bool(len(ranking.positives)) for ranking in self.rankings])

    def scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return each metric for each column of weights; NaN if it has no value."""
        confusion = self.confusion(weights)
        total = len(self.targets)
        return {
            "accuracy": np.trace(confusion) / total,
            "macro_f1": _macro_f1(confusion),
            "roc_auc": self._mean_auc(weights),
            "log_loss": self.loss @ weights / total,
        }

    def confusion(self, weights: np.ndarray) -> np.ndarray:
        """Return counts [target, predicted, columns]."""
        matrix = np.zeros((self.classes * self.classes, weights.shape[1]), dtype=np.int64)
        matrix[self.cells] = np.add.reduceat(weights[self.by_cell], self.cell_starts)
        return matrix.reshape(self.classes, self.classes, -1)

    def class_auc(self, weights: np.ndarray) -> np.ndarray:
        """Return one-vs-rest areas [classes, columns], one row for two classes."""
        return np.stack([ranking.auc(weights) for ranking in self.rankings])

    def _mean_auc(self, weights: np.ndarray) -> np.ndarray:
        """Return the mean over the classes that the split has; NaN in a column that lacks a class."""
        if not self.present.any():
            return np.full(weights.shape[1], np.nan)
        return self.class_auc(weights)[self.present].mean(axis=0)

    def undefined(self, class_names: Sequence[str]) -> dict[str, str]:
        """Return the reason for each metric that has no value on this split."""
        present = np.bincount(self.targets, minlength=self.classes)
        if (present > 0).sum() > 1:
            return {}
        missing = ", ".join(name for name, count in zip(class_names, present, strict=True) if not count)
        return {"roc_auc": f"the test split has no sample of: {missing}"}


class _Ranking:
    """Samples ordered by the score of a class, divided into sequences of negatives and ties with a positive."""

    def __init__(self, scores: np.ndarray, positive: np.ndarray) -> None:
        # Samples of equal score form a piece if one of them is positive; negatives between two such pieces form one
        # piece, because only their number matters. So resampling sums few pieces, not all samples.
        order = np.argsort(scores, kind="stable")
        ranks = np.unique(scores, return_inverse=True)[1][order]
        positive = positive[order]
        with_positive = np.isin(ranks, ranks[positive])
        piece = np.where(with_positive, ranks, -1)
        self.order = order
        self.starts = np.flatnonzero(np.concatenate(([True], piece[1:] != piece[:-1])))
        self.positives = order[positive]
        self.groups, self.group_starts = np.unique(
            np.searchsorted(self.starts, np.flatnonzero(positive), side="right") - 1, return_index=True
        )

    def auc(self, weights: np.ndarray) -> np.ndarray:
        """Return the share of pairs in which the positive outranks the negative, ties count half (Mann-Whitney)."""
        if not len(self.positives):
            return np.full(weights.shape[1], np.nan)
        negatives = np.add.reduceat(weights[self.order], self.starts).astype(np.float64)
        positives = np.add.reduceat(weights[self.positives], self.group_starts).astype(np.float64)
        negatives[self.groups] -= positives
        below = np.cumsum(negatives, axis=0) - negatives / 2
        pairs = positives.sum(axis=0) * negatives.sum(axis=0)
        outranked = (positives * below[self.groups]).sum(axis=0)
        return np.divide(outranked, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def _macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Return the mean F1 over classes that occur as target or as prediction, as scikit-learn does."""
    hits = np.diagonal(confusion).T
    occurrences = confusion.sum(axis=0) + confusion.sum(axis=1)
    f1 = np.divide(2 * hits, occurrences, out=np.zeros(hits.shape), where=occurrences > 0)
    return f1.sum(axis=0) / (occurrences > 0).sum(axis=0)


def _per_class(confusion: np.ndarray, auc: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return precision, recall, F1, support and ROC AUC of each class; None for a ratio without cases."""
    areas = auc if len(auc) == len(class_names) else np.repeat(auc, len(class_names))
    rows = []
    for label, name in enumerate(class_names):
        hits, predicted, support = confusion[label, label], confusion[:, label].sum(), confusion[label].sum()
        rows.append(
            {
                "class": name,
                "precision": _ratio(hits, predicted),
                "recall": _ratio(hits, support),
                "f1": _ratio(2 * hits, predicted + support),
                "support": int(support),
                "roc_auc": None if np.isnan(areas[label]) else float(areas[label]),
            }
        )
    return rows


def _ratio(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def predictions_csv(logits: np.ndarray, targets: np.ndarray, class_names: Sequence[str]) -> str:
    """Return one line a sample; every probability reads back as the same float64."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sample", "target", "predicted", *(f"p({name})" for name in class_names)])
    probabilities = np.exp(log_softmax(logits))
    predicted = logits.argmax(axis=1)
    for index, row in enumerate(probabilities.tolist()):
        writer.writerow([index, targets[index], predicted[index], *map(repr, row)])
    return text.getvalue()


def outcomes(path: Path, class_names: Sequence[str]) -> Outcomes:
    """Return the predictions of a file that `predictions_csv` wrote."""
    names, columns, values = read(path)
    check_columns(path, columns, ["target", "predicted", *(f"p({name})" for name in class_names)])
    targets, predicted, shares = values[:, 0].astype(np.int64), values[:, 1].astype(np.int64), values[:, 2:]
    is_right, certainty = targets == predicted, shares[np.arange(len(shares)), predicted]

    def told(sample: int) -> Told:
        return Told(class_names[targets[sample]], class_names[predicted[sample]], float(certainty[sample]))

    def scores() -> Any:
        with np.errstate(divide="ignore"):  # logarithms of probabilities are logits of the same probabilities
            return Sample(np.maximum(np.log(shares), -745.0), targets).scores

    return Outcomes(
        names=names,
        truth=targets,
        scores=scores,
        wrong=np.where(is_right, 0.0, certainty),
        told=told,
        certainty="Probability",
        ranked={name: (shares[:, number], targets == number) for number, name in enumerate(class_names)},
        chosen=(certainty, is_right),
    )
