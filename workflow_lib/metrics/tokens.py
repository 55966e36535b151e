"""Metrics of predicted tokens. The bootstrap draws samples: windows of consecutive tokens.

Logits [batch, sequence, vocabulary] are reduced to sums per sample after each batch, since the logits of a split are
many times larger than its data.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workflow_lib.metrics.bootstrap import Resampling, intervals
from workflow_lib.metrics.outcomes import Outcomes, Told, check_columns, read

LARGEST_EXPONENT = 709.0  # of e, in float64


@dataclass(frozen=True)
class Sums:
    """For each sample, the summed loss of its tokens (natural logarithm) and the number of correct predictions."""

    loss: np.ndarray
    correct: np.ndarray
    tokens: int  # of every sample

    def scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return each metric for each column of weights."""
        tokens = weights.sum(axis=0) * float(self.tokens)
        loss = self.loss @ weights / tokens
        perplexity = np.exp(loss, out=np.full(loss.shape, np.nan), where=loss < LARGEST_EXPONENT)
        return {"loss": loss, "perplexity": perplexity, "accuracy": self.correct @ weights / tokens}


def measure(sums: Sums, how: Resampling) -> dict[str, Any]:
    """Return metrics with percentile bootstrap intervals."""
    is_lost = sums.loss.sum() / sums.tokens / len(sums.loss) >= LARGEST_EXPONENT
    reasons = {"perplexity": "it is too large for a number"} if is_lost else {}
    return {
        "metrics": intervals(
            sums.scores, len(sums.loss), how, reasons=reasons, lacking="have one too large for a number"
        ),
        "bootstrap": how.describe(),
        "tokens": sums.tokens * len(sums.loss),
    }


def predictions_csv(sums: Sums) -> str:
    """Return one line a sample: mean loss of its tokens, and the share that was predicted."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sample", "tokens", "loss", "accuracy"])
    columns = zip((sums.loss / sums.tokens).tolist(), (sums.correct / sums.tokens).tolist(), strict=True)
    for index, (loss, accuracy) in enumerate(columns):
        writer.writerow([index, sums.tokens, repr(loss), repr(accuracy)])
    return text.getvalue()


def outcomes(path: Path) -> Outcomes:
    """Return the predictions of a file that `predictions_csv` wrote; a sample is as wrong as its loss."""
    names, columns, values = read(path)
    check_columns(path, columns, ["tokens", "loss", "accuracy"])
    tokens, loss, accuracy = values.T
    correct = np.rint(accuracy * tokens).astype(np.int64)
    sums = Sums(loss=loss * tokens, correct=correct, tokens=int(tokens[0]) if len(tokens) else 1)
    return Outcomes(
        names=names,
        truth=tokens,
        scores=lambda: sums.scores,
        wrong=loss,
        told=lambda sample: Told(f"{int(tokens[sample])}", f"{correct[sample]}", float(loss[sample])),
        certainty="Loss",
    )
