"""Metrics of labels, of which a sample may have several or none. A label is predicted if its probability is above 1/2.

The mean average precision and the ROC AUC are means over the labels that some samples have and others do not.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workflow_lib.metrics.bootstrap import Resampling, intervals
from workflow_lib.metrics.classes import _Ranking
from workflow_lib.metrics.outcomes import Outcomes, Told, check_columns, read


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities, float64."""
    probabilities: np.ndarray = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -700, 700)))
    return probabilities


class Sample:
    """A test split, prepared so that each metric is a function of the weights of the samples, as in `classes`."""

    def __init__(self, logits: np.ndarray, targets: np.ndarray) -> None:
        self.true, self.predicted = targets.astype(bool), logits > 0
        self.counts = [part.astype(np.int64).T for part in (self.true & self.predicted, self.predicted, self.true)]
        self.subset = (self.true == self.predicted).all(axis=1)
        self.loss = np.logaddexp(0, np.where(self.true, -1, 1) * logits.astype(np.float64)).mean(axis=1)
        self.rankings = [_Ranking(scores, true) for scores, true in zip(logits.T, self.true.T, strict=True)]
        self.precisions = [_Precision(scores, true) for scores, true in zip(logits.T, self.true.T, strict=True)]

    def scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return each metric for each column of weights; NaN if it has no value."""
        hits, predicted, true = (counts @ weights for counts in self.counts)
        total = weights.sum(axis=0)
        return {
            "macro_f1": _ratio(2 * hits, predicted + true).mean(axis=0),
            "micro_f1": _ratio(2 * hits.sum(axis=0), (predicted + true).sum(axis=0)),
            "mean_average_precision": _mean_defined([precision.average(weights) for precision in self.precisions]),
            "roc_auc": _mean_defined([ranking.auc(weights) for ranking in self.rankings]),
            "subset_accuracy": self.subset @ weights / total,
            "log_loss": self.loss @ weights / total,
        }


class _Precision:
    """Samples ordered by falling score; samples of equal score have one threshold."""

    def __init__(self, scores: np.ndarray, positive: np.ndarray) -> None:
        self.order = np.argsort(-scores, kind="stable")
        ordered = scores[self.order]
        self.ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        self.positive = positive[self.order]

    def average(self, weights: np.ndarray) -> np.ndarray:
        """Return the sum over thresholds of the precision times the gain of recall; NaN without a positive."""
        drawn = weights[self.order].astype(np.float64)
        above = np.cumsum(drawn, axis=0)[self.ends]
        hits = np.cumsum(drawn * self.positive[:, None], axis=0)[self.ends]
        gains = np.diff(hits, axis=0, prepend=0.0)
        summed = (gains * np.divide(hits, above, out=np.zeros(hits.shape), where=above > 0)).sum(axis=0)
        return np.divide(summed, hits[-1], out=np.full(len(summed), np.nan), where=hits[-1] > 0)


def _ratio(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Return the ratios; 0 for 0 of 0, as in scikit-learn."""
    return np.divide(parts, wholes, out=np.zeros(parts.shape), where=wholes > 0)


def _mean_defined(values: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over the values that are defined, for each column; NaN if none is."""
    stacked = np.stack(values)
    is_defined = ~np.isnan(stacked)
    sums, counts = np.where(is_defined, stacked, 0.0).sum(axis=0), is_defined.sum(axis=0)
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def measure(logits: np.ndarray, targets: np.ndarray, names: Sequence[str], how: Resampling) -> dict[str, Any]:
    """Return metrics with percentile bootstrap intervals, and the metrics of each label."""
    sample, once = Sample(logits, targets), np.ones((len(targets), 1), np.int32)
    reasons = {}
    if not sample.true.any():
        reasons["mean_average_precision"] = "no sample of the test split has a label"
    if not (sample.true.any(axis=0) & ~sample.true.all(axis=0)).any():
        reasons["roc_auc"] = "the test split has no label that some samples have and others do not"
    rows = []
    for number, name in enumerate(names):
        hits, predicted, true = (int(counts[number].sum()) for counts in sample.counts)
        areas = (sample.precisions[number].average(once)[0], sample.rankings[number].auc(once)[0])
        precision, area = (None if np.isnan(value) else float(value) for value in areas)
        rows.append(
            {
                "label": name,
                "precision": hits / predicted if predicted else None,
                "recall": hits / true if true else None,
                "f1": 2 * hits / (predicted + true) if predicted + true else None,
                "average_precision": precision,
                "roc_auc": area,
                "support": true,
            }
        )
    return {
        "metrics": intervals(sample.scores, len(targets), how, reasons=reasons, lacking="lack a label"),
        "bootstrap": how.describe(),
        "classes": list(names),
        "absent_classes": [row["label"] for row in rows if not row["support"]],
        "per_label": rows,
    }


def predictions_csv(logits: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> str:
    """Return one line a sample: each label as 0 or 1, and its probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sample", *(f"{what}({name})" for name in names for what in ("target", "p"))])
    for index, (true, shares) in enumerate(zip(targets.tolist(), sigmoid(logits).tolist(), strict=True)):
        pairs = zip(true, shares, strict=True)
        writer.writerow([index, *(value for label, share in pairs for value in (label, repr(share)))])
    return text.getvalue()


def outcomes(path: Path, names: Sequence[str]) -> Outcomes:
    """Return the predictions of a file that `predictions_csv` wrote; a sample is as wrong as its worst label."""
    of_samples, columns, values = read(path)
    check_columns(path, columns, [f"{what}({name})" for name in names for what in ("target", "p")])
    true, shares = values[:, ::2] > 0, values[:, 1::2]
    predicted = shares > 0.5
    wrong = np.where(true != predicted, np.where(predicted, shares, 1 - shares), 0.0).max(axis=1)

    def listed(row: np.ndarray) -> str:
        return ", ".join(names[number] for number in row.nonzero()[0].tolist()) or "none"

    def scores() -> Any:
        with np.errstate(divide="ignore"):
            return Sample(np.clip(np.log(shares) - np.log1p(-shares), -745.0, 745.0), true).scores

    return Outcomes(
        names=of_samples,
        truth=true,
        scores=scores,
        wrong=wrong,
        told=lambda sample: Told(listed(true[sample]), listed(predicted[sample]), float(wrong[sample])),
        certainty="Probability",
        ranked={name: (shares[:, number], true[:, number]) for number, name in enumerate(names)},
    )
