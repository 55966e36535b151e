"""Language: the next token at each position. Tokens [B, T] give logits [B, T, tokens]; the loss is cross-entropy.

A sample is a window of T + 1 consecutive tokens; each but the last is an input, each but the first is a target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from workflow_lib.tasks import AnySplit, Chapter, Columns, Measured, Objective, Onnx, Pairs, Task, summed
from workflow_lib.tasks.facts import POSITIVE, SHARE

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, device, nn

    from workflow_lib.config.experiment import Evaluate
    from workflow_lib.config.run import Training
    from workflow_lib.data import Manifest, ModelSpec
    from workflow_lib.metrics.outcomes import Outcomes
    from workflow_lib.metrics.tokens import Sums

PROBED_TOKENS = 8
LOGITS_AT_ONCE = 1 << 25  # 128 MiB of float32
PROMPT_TOKENS = 64
GENERATED_TOKENS = 256
TEMPERATURE = 0.8


def next_tokens(windows: Tensor, targets: Tensor) -> Pairs:
    """Return inputs and targets: all tokens of each window but the last, and all but the first."""
    return windows[:, :-1], windows[:, 1:]


@final
class TokenCrossEntropy(Objective):
    """Cross-entropy of each token, with label smoothing if it is set."""

    sums = ("loss", "correct", "tokens")

    def __init__(self, *, smoothing: float = 0.0, chunk: int | None = None) -> None:
        """``chunk``: tokens whose loss is computed at once; None computes that of all."""
        self._smoothing, self._chunk = smoothing, chunk

    def parts(self, inputs: Tensor, targets: Tensor) -> Pairs:
        return next_tokens(inputs, targets)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from torch.nn import functional

        if self._chunk is not None:
            from workflow_lib.metrics.token_loss import mean_loss

            return mean_loss(outputs.flatten(0, 1), targets.flatten(), chunk=self._chunk, smoothing=self._smoothing)
        return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), label_smoothing=self._smoothing)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from torch.nn import functional

        each = functional.cross_entropy(
            outputs.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=self._smoothing
        )
        return each.view(targets.shape).mean(1)

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from torch.nn import functional

        if self._chunk is None:
            loss = functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="sum")
        else:
            from workflow_lib.metrics.token_loss import sum_of_losses

            loss = sum_of_losses(outputs.flatten(0, 1), targets.flatten(), chunk=self._chunk)
        return summed(loss, (outputs.argmax(2) == targets).sum(), targets.numel())

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"val_loss": sums["loss"] / sums["tokens"], "val_accuracy": sums["correct"] / sums["tokens"]}


def objective(
    training: Training, where: device, counts: Sequence[int], target_std: Sequence[float]
) -> TokenCrossEntropy:
    """Return the loss with the label smoothing and the chunks of the settings."""
    return TokenCrossEntropy(smoothing=training.label_smoothing, chunk=training.loss_chunk)


def probe(spec: ModelSpec) -> tuple[Tensor, tuple[int, ...]]:
    """Return two short windows of token 0, int64 [2, T], and the shape of their logits."""
    import torch

    shape = (2, min(spec.input_shape[0], PROBED_TOKENS))
    return torch.zeros(shape, dtype=torch.int64), (*shape, spec.outputs)


def evaluate(network: nn.Module, manifest: Manifest, split: AnySplit, settings: Evaluate, where: device) -> Measured:
    """Return loss, perplexity and accuracy of the tokens, a generated text, and loss and accuracy of each sample."""
    from workflow_lib.metrics import texts, tokens
    from workflow_lib.metrics.bootstrap import Resampling
    from workflow_lib.metrics.outputs import check_finite, slices

    (context,) = manifest.spec.input_shape
    size = rows_at_once(manifest.spec, settings.batch_size)
    with closing(split.stream(slices(len(split), size))) as batches:
        sums = predict(network, (windows for windows, _ in batches), where)
    check_finite(sums.loss[:, None])
    prompt = split.batch(slice(0, 1))[0][0, : min(PROMPT_TOKENS, context)].cpu()
    continuation = generate(network, prompt, context, settings.seed, where)
    beginning, text = texts.decoded_parts(prompt.tolist(), continuation, manifest)
    generated = {
        "prompt": beginning,
        "text": text,
        "temperature": TEMPERATURE,
        "seed": settings.seed,
    }
    return tokens.measure(sums, Resampling.of(settings)) | {"generated": generated}, tokens.predictions_csv(sums)


def rows_at_once(spec: ModelSpec, batch_size: int) -> int:
    """Return the largest batch, up to this size, whose logits fit LOGITS_AT_ONCE."""
    return max(1, min(batch_size, LOGITS_AT_ONCE // (spec.input_shape[0] * spec.outputs)))


def predict(network: nn.Module, batches: Iterable[Tensor], where: device) -> Sums:
    """Return the sums of each window [T + 1]; logits of a batch are reduced before the next, since they are large."""
    import torch

    from workflow_lib.metrics.tokens import Sums

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
    """Return GENERATED_TOKENS tokens that continue the prompt; equal for equal weights, prompt and seed."""
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


def next_token(logits: Tensor) -> Tensor:
    """Return the probability of each token to follow the sequence [n, tokens]."""
    return logits[:, -1].softmax(dim=1)


def predicted(logits: np.ndarray, targets: np.ndarray, manifest: Manifest) -> Columns:
    """Return the mean loss (nats) of the tokens of each passage, its exponential, and the share predicted correctly."""
    import numpy as np
    import torch

    loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).flatten(0, 1), torch.from_numpy(targets).flatten(), reduction="none"
    )
    mean = loss.view(targets.shape).double().mean(dim=1).numpy()
    with np.errstate(over="ignore"):
        perplexity = np.exp(mean)
    accuracy = (logits.argmax(axis=2) == targets).mean(axis=1)
    tokens = np.full(len(mean), targets.shape[1])
    return {"tokens": tokens, "loss": mean, "perplexity": perplexity, "accuracy": accuracy}


def correct_share(outputs: np.ndarray, targets: np.ndarray, manifest: Manifest) -> float:
    """Return the sum over samples of the share of their tokens that were predicted correctly."""
    right = outputs.argmax(axis=-1) == targets
    return float(right.sum()) / right.shape[1]


def shorter_lengths(spec: ModelSpec) -> list[int]:
    """Return the lengths 1 and half the context."""
    return sorted({1, (spec.input_shape[0] + 1) // 2})


def outcomes(predictions: Path, evaluation: Mapping[str, Any]) -> Outcomes:
    """Return the content of predictions.csv."""
    from workflow_lib.metrics import tokens

    return tokens.outcomes(predictions)


TASK = Task(
    targets="tokens",
    metrics={"loss": "loss", "perplexity": "perplexity", "accuracy": "accuracy"},
    curve=("accuracy", "Accuracy"),
    ranges={"loss": POSITIVE, "perplexity": (1.0, math.inf), "accuracy": SHARE},
    larger_is_better=True,
    study_metric="val_accuracy",
    settings=("label_smoothing", "loss_chunk"),
    answers="token",
    objective=objective,
    evaluate=evaluate,
    onnx=Onnx(
        output="logit",
        score=("accuracy", "Accuracy"),
        score_of=correct_share,
        probabilities=next_token,
        pairs=next_tokens,
        at_most=rows_at_once,
        lengths=shorter_lengths,
    ),
    chapter=Chapter("text", "Text"),
    probe=probe,
    predicted=predicted,
    outcomes=outcomes,
)
