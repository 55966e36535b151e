"""Text classification: one class for each text. Tokens [B, T] give logits [B, classes]; the loss is cross-entropy.

Loss and metrics are those of classification. Texts are filled with token 0 up to the length of the longest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workflow_lib.tasks import AnySplit, Measured, classification

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor, device, nn

    from workflow_lib.config.experiment import Evaluate
    from workflow_lib.data import Manifest, ModelSpec

PAD = 0
PROBED_TOKENS = 8
SHOWN_ERRORS = 10
SHOWN_CHARACTERS = 400


def probe(spec: ModelSpec) -> tuple[Tensor, tuple[int, ...]]:
    """Return two short texts, int64 [2, T], the second with a filled end, and the shape of their logits."""
    import torch

    tokens = torch.ones((2, min(spec.input_shape[0], PROBED_TOKENS)), dtype=torch.int64)
    tokens[1, 1:] = PAD
    return tokens, (2, spec.outputs)


def shorter_lengths(spec: ModelSpec) -> list[int]:
    """Return the lengths 1 and half of the longest."""
    return sorted({1, (spec.input_shape[0] + 1) // 2})


def evaluate(network: nn.Module, manifest: Manifest, split: AnySplit, settings: Evaluate, where: device) -> Measured:
    """Return the metrics of a classification, the probabilities of each text, and the most certain errors."""
    from workflow_lib.metrics import classes
    from workflow_lib.metrics.bootstrap import Resampling
    from workflow_lib.metrics.outputs import predict

    logits, targets = predict(network, split, settings.batch_size, where), split.targets.cpu().numpy()
    measured = classes.measure(logits, targets, manifest.classes, Resampling.of(settings))
    errors = certain_errors(logits, targets, manifest, split)
    return measured | {"errors": errors}, classes.predictions_csv(logits, targets, manifest.classes)


def certain_errors(
    logits: np.ndarray, targets: np.ndarray, manifest: Manifest, split: AnySplit
) -> list[dict[str, Any]]:
    """Return the wrong predictions with the highest probabilities, the most certain first, with their texts."""
    import numpy as np

    from workflow_lib.metrics.classes import log_softmax

    shares, predicted = np.exp(log_softmax(logits)), logits.argmax(axis=1)
    certainty = np.where(predicted == targets, -1.0, shares.max(axis=1))
    errors = []
    for sample in np.argsort(-certainty, kind="stable")[:SHOWN_ERRORS].tolist():
        if certainty[sample] < 0:
            break
        tokens = split.batch(slice(sample, sample + 1))[0][0].tolist()
        text = text_of(tokens, manifest.vocabulary)
        errors.append(
            {
                "sample": sample,
                "target": manifest.classes[int(targets[sample])],
                "predicted": manifest.classes[int(predicted[sample])],
                "probability": float(certainty[sample]),
                "text": text[:SHOWN_CHARACTERS] + "…" * (len(text) > SHOWN_CHARACTERS),
            }
        )
    return errors


def text_of(tokens: Sequence[int], vocabulary: Sequence[str]) -> str:
    """Return the text of the tokens, without the filled end."""
    return "".join(vocabulary[token] for token in tokens if token != PAD)


TASK = replace(
    classification.TASK,
    evaluate=evaluate,
    onnx=replace(classification.TASK.onnx, lengths=shorter_lengths),
    probe=probe,
)
