"""Metrics of masks. The bootstrap draws images: the pixels of an image are not independent.

Logits [batch, classes, height, width] are reduced to counts of each image after each batch, since the logits of a split
are many times larger than its data. Pixels to ignore are in no count.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workflow_lib.metrics.bootstrap import Resampling, intervals
from workflow_lib.metrics.outcomes import Outcomes, Told, check_columns, read
from workflow_lib.text import count


@dataclass(frozen=True)
class Counts:
    """Pixels of each image and class, int64 [images, classes], and the mean loss of each image's pixels.

    hits        pixels of the class that were predicted as such
    predicted   pixels that were predicted as the class
    true        pixels of the class
    """

    hits: np.ndarray
    predicted: np.ndarray
    true: np.ndarray
    loss: np.ndarray

    @property
    def pixels(self) -> np.ndarray:
        """The pixels of each image that are not ignored, int64 [images]."""
        total: np.ndarray = self.true.sum(axis=1)
        return total

    def scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return each metric for each column of weights: over all pixels; the mean over the classes that occur."""
        hits, predicted, true = (part.T @ weights for part in (self.hits, self.predicted, self.true))
        total = true.sum(axis=0)
        return {
            "mean_iou": _mean(hits, predicted + true - hits),
            "dice": _mean(2 * hits, predicted + true),
            "pixel_accuracy": _ratio(hits.sum(axis=0), total),
            "loss": self.loss @ weights / weights.sum(axis=0),
        }


def measure(counts: Counts, class_names: Sequence[str], how: Resampling) -> dict[str, Any]:
    """Return metrics with percentile bootstrap intervals, and the metrics of each class."""
    reasons = {}
    if not counts.true.any():
        reasons = dict.fromkeys(("mean_iou", "dice", "pixel_accuracy"), "every pixel of the test split is ignored")
    true = counts.true.sum(axis=0)
    return {
        "metrics": intervals(
            counts.scores, len(counts.loss), how, reasons=reasons, lacking="have only pixels to ignore"
        ),
        "bootstrap": how.describe(),
        "classes": list(class_names),
        "absent_classes": [name for name, pixels in zip(class_names, true, strict=True) if not pixels],
        "per_class": _per_class(counts, class_names),
        "pixels": int(true.sum()),
    }


def _per_class(counts: Counts, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return IoU, Dice, precision, recall and pixels of each class; None for a ratio without pixels."""
    sums = zip(*(part.sum(axis=0).tolist() for part in (counts.hits, counts.predicted, counts.true)), strict=True)
    return [
        {
            "class": name,
            "iou": hits / (predicted + true - hits) if predicted + true else None,
            "dice": 2 * hits / (predicted + true) if predicted + true else None,
            "precision": hits / predicted if predicted else None,
            "recall": hits / true if true else None,
            "pixels": true,
        }
        for name, (hits, predicted, true) in zip(class_names, sums, strict=True)
    ]


def _ratio(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    return np.divide(parts, wholes, out=np.full(parts.shape, np.nan), where=wholes > 0)


def _mean(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Return the mean ratio [columns] over the classes that occur as target or as prediction; NaN if there is none."""
    each, occurs = np.where(wholes > 0, np.nan_to_num(_ratio(parts, wholes)), 0.0), (wholes > 0).sum(axis=0)
    return _ratio(each.sum(axis=0), occurs)


def image_scores(counts: Counts) -> dict[str, np.ndarray]:
    """Return the metrics of each image by itself, float64 [images]; NaN if all of it is ignored."""
    hits, predicted, true = counts.hits.T, counts.predicted.T, counts.true.T
    return {
        "mean_iou": _mean(hits, predicted + true - hits),
        "dice": _mean(2 * hits, predicted + true),
        "pixel_accuracy": _ratio(hits.sum(axis=0), counts.pixels),
    }


def predictions_csv(counts: Counts) -> str:
    """Return one line an image: its pixels that are not ignored, their mean loss, and the metrics of the image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    scores = image_scores(counts)
    writer.writerow(["sample", "pixels", "loss", *scores])
    columns = zip(counts.pixels.tolist(), counts.loss.tolist(), *(s.tolist() for s in scores.values()), strict=True)
    for index, (pixels, *numbers) in enumerate(columns):
        writer.writerow([index, pixels, *("" if np.isnan(number) else repr(number) for number in numbers)])
    return text.getvalue()


def outcomes(path: Path) -> Outcomes:
    """Return the predictions of a file that `predictions_csv` wrote; an image is as wrong as 1 - its mean IoU.

    The file has no pixels of each class: `mean_iou_by_image` and `dice_by_image` are means over the images, while the
    `mean_iou` and `dice` of an evaluation count the pixels of all images together.
    """
    names, columns, values = read(path)
    check_columns(path, columns, ["pixels", "loss", "mean_iou", "dice", "pixel_accuracy"])
    pixels, loss, each = values[:, 0], values[:, 1], dict(zip(columns[2:], values[:, 2:].T, strict=True))

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for name in ("mean_iou", "dice"):
            is_defined = ~np.isnan(each[name])
            total = is_defined.astype(np.float64) @ weights
            found[f"{name}_by_image"] = _ratio(np.where(is_defined, each[name], 0.0) @ weights, total)
        right = np.nan_to_num(each["pixel_accuracy"]) * pixels
        found["pixel_accuracy"] = _ratio(right @ weights, pixels @ weights)
        return found | {"loss": loss @ weights / weights.sum(axis=0)}

    return Outcomes(
        names=names,
        truth=pixels,
        scores=lambda: scores,
        wrong=1 - np.nan_to_num(each["mean_iou"], nan=1.0),
        told=lambda sample: Told(count(int(pixels[sample]), "pixel"), "", float(each["mean_iou"][sample])),
        certainty="Mean IoU",
    )
