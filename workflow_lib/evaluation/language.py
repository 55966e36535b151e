"""How well the next token is foreseen. A sample, a window of consecutive tokens, is what the bootstrap draws.

Logits [batch, sequence, vocabulary] are reduced to sums of each sample before the next batch is looked at: they would
be many times larger than the data.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workflow_lib.evaluation.bootstrap import Resampling, intervals

if TYPE_CHECKING:
    from torch import Tensor, device, nn

METRICS = ("loss", "perplexity", "accuracy")
LOGITS_AT_ONCE = 1 << 25  # 128 MiB
LARGEST_EXPONENT = 709.0  # of e, in float64
PROMPT_TOKENS = 64
GENERATED_TOKENS = 256
TEMPERATURE = 0.8


@dataclass(frozen=True)
class Sums:
    """Of each sample: the loss of its tokens together (natural logarithm), how many were foreseen, and how many are."""

    loss: np.ndarray
    correct: np.ndarray
    tokens: int  # of every sample

    def scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Each metric for each column of weights."""
        tokens = weights.sum(axis=0) * float(self.tokens)
        loss = self.loss @ weights / tokens
        perplexity = np.exp(loss, out=np.full(loss.shape, np.nan), where=loss < LARGEST_EXPONENT)
        return {"loss": loss, "perplexity": perplexity, "accuracy": self.correct @ weights / tokens}


def measure(sums: Sums, how: Resampling) -> dict[str, Any]:
    """Metrics with percentile bootstrap intervals."""
    is_lost = sums.loss.sum() / sums.tokens / len(sums.loss) >= LARGEST_EXPONENT
    reasons = {"perplexity": "it is too large for a number"} if is_lost else {}
    return {
        "metrics": intervals(
            sums.scores, len(sums.loss), how, reasons=reasons, lacking="have one too large for a number"
        ),
        "bootstrap": how.describe(),
        "tokens": sums.tokens * len(sums.loss),
    }


def rows_at_once(batch_size: int, context: int, vocabulary: int) -> int:
    """The largest batch that keeps the logits within bounds."""
    return max(1, min(batch_size, LOGITS_AT_ONCE // (context * vocabulary)))


def predict(network: nn.Module, batches: Iterable[Tensor], where: device) -> Sums:
    """The sums of every window [context + 1] of the batches: each token is foreseen from those before it."""
    import torch

    network = network.to(where).eval()
    losses, correct, tokens = [], [], 0
    with torch.inference_mode():
        for windows in batches:
            inputs, targets = windows[:, :-1].to(where), windows[:, 1:].to(where)
            logits = network(inputs).float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            losses.append(loss.view(targets.shape).double().sum(dim=1).cpu())
            correct.append((logits.argmax(dim=2) == targets).sum(dim=1).cpu())
            tokens = targets.shape[1]
    return Sums(torch.cat(losses).numpy(), torch.cat(correct).numpy(), tokens)


def generate(network: nn.Module, prompt: Tensor, context: int, seed: int, where: device) -> list[int]:
    """Tokens that the model goes on with after the prompt; a function of weights, prompt and seed."""
    import torch

    network = network.to(where).eval()
    generator = torch.Generator().manual_seed(seed)
    tokens = prompt.tolist()
    with torch.inference_mode():
        for _ in range(GENERATED_TOKENS):
            seen = torch.tensor([tokens[-context:]], device=where)
            logits = network(seen)[0, -1].double().cpu()
            shares = torch.softmax(logits / TEMPERATURE, dim=0)
            tokens.append(int(torch.multinomial(shares, 1, generator=generator)))
    return tokens[len(prompt) :]


def predictions_csv(sums: Sums) -> str:
    """One line a sample: mean loss of its tokens, and the share of them that was foreseen."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sample", "tokens", "loss", "accuracy"])
    columns = zip((sums.loss / sums.tokens).tolist(), (sums.correct / sums.tokens).tolist(), strict=True)
    for index, (loss, accuracy) in enumerate(columns):
        writer.writerow([index, sums.tokens, repr(loss), repr(accuracy)])
    return text.getvalue()
