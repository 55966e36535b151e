"""Multi-label: several classes for each sample, or none. The model returns logits [B, labels].

The loss is the binary cross-entropy of each label, averaged over the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from workflow_lib.tasks import AnySplit, Chapter, Columns, Measured, Objective, Onnx, Task
from workflow_lib.tasks.facts import POSITIVE, SHARE, Averaging

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, device, nn

    from workflow_lib.config.experiment import Evaluate
    from workflow_lib.config.run import Training
    from workflow_lib.data import Manifest
    from workflow_lib.metrics.outcomes import Outcomes


@final
class BinaryCrossEntropy(Objective):
    """Binary cross-entropy of each label, with label smoothing or focal loss if they are set."""

    def __init__(self, labels: int, *, smoothing: float = 0.0, focal_gamma: float = 0.0) -> None:
        self._labels, self._smoothing, self._gamma = labels, smoothing, focal_gamma
        counted = [f"{what} {number}" for what in ("hits", "predicted", "true") for number in range(labels)]
        self.sums = ("loss", "samples", *counted)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from torch.nn import functional

        true = targets.to(outputs.dtype)
        smooth = true * (1 - self._smoothing) + self._smoothing / 2
        each = functional.binary_cross_entropy_with_logits(outputs, smooth, reduction="none")
        if self._gamma:  # Lin et al., ICCV 2017: (1 - p)^gamma; the bound keeps the slope finite where p rounds to 1
            missed = ((1 - 2 * true) * outputs).sigmoid().clamp_min(1e-7)
            each = each * missed.pow(self._gamma)
        return each.mean(1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.losses(outputs, targets).mean()

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        import torch

        loss = BinaryCrossEntropy(self._labels).losses(outputs, targets).double().sum()
        predicted, true = outputs > 0, targets > 0
        counts = torch.stack([part.sum(0) for part in (predicted & true, predicted, true)]).double().flatten()
        return torch.cat((torch.stack((loss, loss.new_full((), len(targets)))), counts))

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        scores = []
        for number in range(self._labels):
            hits, predicted, true = (sums[f"{what} {number}"] for what in ("hits", "predicted", "true"))
            scores.append(2 * hits / (predicted + true) if predicted + true else 0.0)
        return {"val_loss": sums["loss"] / sums["samples"], "val_macro_f1": sum(scores) / self._labels}


def objective(
    training: Training, where: device, counts: Sequence[int], target_std: Sequence[float]
) -> BinaryCrossEntropy:
    """Return the loss with the label smoothing and focal gamma of the settings."""
    return BinaryCrossEntropy(len(counts), smoothing=training.label_smoothing, focal_gamma=training.focal_gamma)


def evaluate(network: nn.Module, manifest: Manifest, split: AnySplit, settings: Evaluate, where: device) -> Measured:
    """Return F1, average precision, ROC AUC and subset accuracy, and the probabilities of each sample."""
    from workflow_lib.metrics import labels
    from workflow_lib.metrics.bootstrap import Resampling
    from workflow_lib.metrics.outputs import predict

    logits, targets = predict(network, split, settings.batch_size, where), split.targets.cpu().numpy()
    measured = labels.measure(logits, targets, manifest.classes, Resampling.of(settings))
    return measured, labels.predictions_csv(logits, targets, manifest.classes)


def correct_labels(outputs: np.ndarray, targets: np.ndarray, manifest: Manifest) -> float:
    """Return the sum over samples of the share of their labels that were predicted correctly."""
    return float(((outputs > 0) == (targets > 0)).mean(axis=1).sum())


def probabilities(logits: Tensor) -> Tensor:
    """Return the probability of each label."""
    return logits.sigmoid()


def log_shares(logits: Tensor) -> Tensor:
    """Return the logarithms of the probabilities that a sample has a label, and that it does not [2, B, labels]."""
    import torch
    from torch.nn import functional

    return torch.stack((functional.logsigmoid(logits), functional.logsigmoid(-logits)))


def logits_of(shares: Tensor) -> Tensor:
    """Return the logits of these probabilities."""
    return shares[0] - shares[1]


def predicted(logits: np.ndarray, targets: np.ndarray, manifest: Manifest) -> Columns:
    """Return the names of the predicted labels, separated by `;`, and the probability of each label."""
    from workflow_lib.metrics.labels import sigmoid

    shares = sigmoid(logits)
    names = [";".join(manifest.classes[label] for label in row.nonzero()[0].tolist()) for row in logits > 0]
    return {"predicted": names} | {f"p({name})": shares[:, number] for number, name in enumerate(manifest.classes)}


def outcomes(predictions: Path, evaluation: Mapping[str, Any]) -> Outcomes:
    """Return the content of predictions.csv."""
    from workflow_lib.metrics import labels

    return labels.outcomes(predictions, evaluation["classes"])


TASK = Task(
    targets="labels",
    metrics={
        "macro_f1": "macro F1",
        "micro_f1": "micro F1",
        "mean_average_precision": "mean average precision",
        "roc_auc": "ROC AUC",
        "subset_accuracy": "subset accuracy",
        "log_loss": "log loss",
    },
    curve=("macro_f1", "Macro F1"),
    ranges={
        **dict.fromkeys(("macro_f1", "micro_f1", "mean_average_precision", "roc_auc", "subset_accuracy"), SHARE),
        **dict.fromkeys(("log_loss", "loss"), POSITIVE),
    },
    larger_is_better=True,
    study_metric="val_macro_f1",
    settings=("label_smoothing", "focal_gamma"),
    averaging=Averaging(log_shares, logits_of),
    objective=objective,
    evaluate=evaluate,
    onnx=Onnx(
        output="logit",
        score=("label_accuracy", "Accuracy of labels"),
        score_of=correct_labels,
        has_labels=False,
        probabilities=probabilities,
    ),
    chapter=Chapter("labels", "Labels"),
    predicted=predicted,
    outcomes=outcomes,
)
