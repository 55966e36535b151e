"""The chapter on thresholds: ROC, precision-recall and reliability diagrams of each class of the best run."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from workflow_lib.results.read_runs import Row

if TYPE_CHECKING:
    from workflow_lib.metrics.outcomes import Outcomes

MAX_CLASSES = 12  # with curves of their own
MAX_POINTS = 150  # of a curve
BINS = 10


class Curve(NamedTuple):
    """The values of a curve, and a number that sums it up."""

    x: np.ndarray
    y: np.ndarray
    summary: float


def diagrams_chapter(outcomes: Outcomes) -> Row | None:
    """Return the three figures; None if nothing is predicted with a probability, or no class can be compared.

    Of more than MAX_CLASSES classes, those with the lowest ROC AUC are drawn.
    """
    defined = {name: pair for name, pair in outcomes.ranked.items() if 0 < pair[1].sum() < len(pair[1])}
    if not defined:
        return None
    if len(outcomes.ranked) == 2 and outcomes.chosen is not None:  # the curves of both classes say the same
        defined = dict(list(defined.items())[-1:])
    curves = {name: roc(*pair) for name, pair in defined.items()}
    names = sorted(curves, key=lambda name: curves[name].summary)[:MAX_CLASSES]
    names = [name for name in outcomes.ranked if name in names]
    scores, is_true = outcomes.chosen or (
        np.concatenate([scores for scores, _ in outcomes.ranked.values()]),
        np.concatenate([is_true for _, is_true in outcomes.ranked.values()]),
    )
    everything, error = reliability(scores, is_true), calibration_error(scores, is_true)
    all_name = "predicted class" if outcomes.chosen is not None else "all labels"
    recalls = {name: precision_recall(*defined[name]) for name in names}
    calibrated = {name: reliability(*defined[name]) for name in names}
    figure = _figure("reliability", "Reliability", "predicted probability", "share that is true",
                     calibrated | {all_name: everything}, "")  # fmt: skip
    figure["data"][-1] |= {"opacity": 1.0, "line": {"width": 3}}
    return {
        "names": names,
        "all": all_name,
        "classes": len(outcomes.ranked),
        "rows": [(name, curves[name].summary, recalls[name].summary) for name in names],
        "calibration_error": error,
        "figures": [
            _figure("roc", "ROC", "false positive rate", "true positive rate", {n: curves[n] for n in names}, "AUC"),
            _figure("recall", "Precision and recall", "recall", "precision", recalls, "average precision"),
            figure,
        ],
    }


def roc(scores: np.ndarray, is_true: np.ndarray) -> Curve:
    """Return false and true positive rates over falling thresholds, and the area under the curve (trapezoids)."""
    hits, above = _cumulated(scores, is_true)
    true = np.concatenate(([0.0], hits / hits[-1]))
    false = np.concatenate(([0.0], (above - hits) / (above[-1] - hits[-1])))
    area = float(np.trapezoid(true, false))
    return _thinned(false, true, true + false, area)


def precision_recall(scores: np.ndarray, is_true: np.ndarray) -> Curve:
    """Return recall and precision over falling thresholds, and the average precision, as scikit-learn computes it."""
    hits, above = _cumulated(scores, is_true)
    recall, precision = hits / hits[-1], hits / above
    average = float((np.diff(recall, prepend=0.0) * precision).sum())
    return _thinned(np.concatenate(([0.0], recall)), np.concatenate((precision[:1], precision)), None, average)


def reliability(scores: np.ndarray, is_true: np.ndarray) -> Curve:
    """Return the mean probability and the true share of each of BINS equal intervals that has samples."""
    counts, means, shares = _binned(scores, is_true)
    return Curve(means, shares, float(counts.sum()))


def calibration_error(scores: np.ndarray, is_true: np.ndarray) -> float:
    """Return the mean over the samples of the distance between probability and true share of their interval."""
    counts, means, shares = _binned(scores, is_true)
    return float((counts * np.abs(means - shares)).sum() / counts.sum())


def _binned(scores: np.ndarray, is_true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    places = np.minimum((scores * BINS).astype(int), BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    found = counts > 0
    means = np.bincount(places, scores, BINS)[found] / counts[found]
    return counts[found], means, np.bincount(places, is_true, BINS)[found] / counts[found]


def _cumulated(scores: np.ndarray, is_true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return true and all samples at or above each distinct score, from the highest score to the lowest."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    return np.cumsum(is_true[order])[ends].astype(np.float64), ends + 1.0


def _thinned(x: np.ndarray, y: np.ndarray, along: np.ndarray | None, summary: float) -> Curve:
    """Return the curve with at most MAX_POINTS points, spaced evenly along a rising array (default: by number)."""
    if len(x) > MAX_POINTS:
        along = np.arange(len(x)) if along is None else along
        places = np.unique(np.searchsorted(along, np.linspace(along[0], along[-1], MAX_POINTS)))
        x, y = x[places], y[places]
    return Curve(x, y, summary)


def _figure(name: str, label: str, x: str, y: str, curves: dict[str, Curve], summary: str) -> Row:
    ends = [0.0, 1.0]
    diagonal = {"type": "scatter", "mode": "lines", "x": ends, "y": ends, "hoverinfo": "skip", "meta": "diagonal"}
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers" if name == "reliability" else "lines",
            "name": f"{of}, {summary} {curve.summary:.3f}" if summary else of,
            "meta": of,
            "x": curve.x.round(4).tolist(),
            "y": curve.y.round(4).tolist(),
            "line": {"width": 1 if name == "reliability" else 2, **({"shape": "vh"} if name == "recall" else {})},
            "opacity": 0.6 if name == "reliability" else 1.0,
        }
        for of, curve in curves.items()
    ]
    axis = {"range": [-0.02, 1.02], "dtick": 0.2}
    return {
        "name": name,
        "label": label,
        "data": [*([diagonal] if name != "recall" else []), *traces],
        "layout": {
            "xaxis": {"title": {"text": x}, **axis},
            "yaxis": {"title": {"text": y}, **axis},
            "showlegend": False,
            "hovermode": "closest",
        },
    }
