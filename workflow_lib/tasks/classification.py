"""Classification: one class per sample. The model returns logits [B, classes]; the loss is cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from workflow_lib.errors import ConfigError
from workflow_lib.tasks import AnySplit, Chapter, Columns, Measured, Objective, Onnx, Task, summed
from workflow_lib.tasks.facts import POSITIVE, SHARE, Averaging

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, device, nn

    from workflow_lib.config.experiment import Evaluate
    from workflow_lib.config.run import Training
    from workflow_lib.data import Manifest
    from workflow_lib.metrics.outcomes import Outcomes

MAX_MATRIX_CLASSES = 40
MAX_CONFUSED_PAIRS = 15


@final
class CrossEntropy(Objective):
    """Cross-entropy, with label smoothing, focal loss or class weights if they are set."""

    sums = ("loss", "correct", "samples")

    def __init__(self, *, smoothing: float = 0.0, focal_gamma: float = 0.0, weights: Tensor | None = None) -> None:
        self._smoothing, self._gamma, self._weights = smoothing, focal_gamma, weights

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from torch.nn import functional

        if self._gamma or self._weights is not None:
            return self.losses(outputs, targets).mean()
        return functional.cross_entropy(outputs, targets, label_smoothing=self._smoothing)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        import torch
        from torch.nn import functional

        each = functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=self._smoothing)
        if self._gamma:  # Lin et al., ICCV 2017: (1 - p)^gamma
            log_p = functional.log_softmax(outputs, 1, dtype=torch.float32).gather(1, targets[:, None]).squeeze(1)
            # the bound keeps the slope of the power finite where p rounds to 1
            each = each * (-log_p.expm1()).clamp_min(1e-7).pow(self._gamma)
        return each if self._weights is None else each * self._weights[targets]

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from torch.nn import functional

        loss = functional.cross_entropy(outputs, targets, reduction="sum")
        return summed(loss, (outputs.argmax(1) == targets).sum(), len(targets))

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"val_loss": sums["loss"] / sums["samples"], "val_accuracy": sums["correct"] / sums["samples"]}


def objective(training: Training, where: device, counts: Sequence[int], target_std: Sequence[float]) -> CrossEntropy:
    """Return the loss with the label smoothing, focal gamma and class weights of the settings."""
    import torch

    weights = class_weights(training.class_weights, counts)
    return CrossEntropy(
        smoothing=training.label_smoothing,
        focal_gamma=training.focal_gamma,
        weights=None if weights is None else torch.tensor(weights, dtype=torch.float32, device=where),
    )


def class_weights(setting: Literal["balanced"] | Sequence[float] | None, counts: Sequence[int]) -> list[float] | None:
    """Return the weight of each class, or None. Balanced weights are inverse to `counts`; their mean over samples is 1.

    Raises ConfigError if the number of listed weights is not the number of classes.
    """
    if setting is None:
        return None
    if setting == "balanced":
        return [sum(counts) / (len(counts) * count) for count in counts]
    if len(setting) != len(counts):
        raise ConfigError(
            f"training.class_weights: {len(setting)} weights; the data has {len(counts)} classes, and each needs one"
        )
    return [float(weight) for weight in setting]


def evaluate(network: nn.Module, manifest: Manifest, split: AnySplit, settings: Evaluate, where: device) -> Measured:
    """Return accuracy, F1, ROC AUC and log loss, and the probabilities of each sample."""
    from workflow_lib.metrics import classes
    from workflow_lib.metrics.bootstrap import Resampling
    from workflow_lib.metrics.outputs import predict

    logits, targets = predict(network, split, settings.batch_size, where), split.targets.cpu().numpy()
    measured = classes.measure(logits, targets, manifest.classes, Resampling.of(settings))
    return measured, classes.predictions_csv(logits, targets, manifest.classes)


def probabilities(logits: Tensor) -> Tensor:
    """Return the probability of each class."""
    return logits.softmax(dim=1)


def log_softmax(logits: Tensor) -> Tensor:
    """Return the logarithm of the probability of each class."""
    return logits.log_softmax(dim=1)


AVERAGING = Averaging(log_softmax, lambda shares: shares)


def predicted(logits: np.ndarray, targets: np.ndarray, manifest: Manifest) -> Columns:
    """Return the name of the most probable class, and the probability of each class."""
    import numpy as np

    from workflow_lib.metrics.classes import log_softmax

    shares = np.exp(log_softmax(logits))
    names = [manifest.classes[number] for number in logits.argmax(axis=1).tolist()]
    return {"predicted": names} | {f"p({name})": shares[:, number] for number, name in enumerate(manifest.classes)}


def correct(outputs: np.ndarray, targets: np.ndarray, manifest: Manifest) -> float:
    """Return the number of samples whose largest output is that of their class."""
    return float((outputs.argmax(axis=-1) == targets).sum())


def chapter_values(evaluation: dict[str, Any], predictions: Path) -> dict[str, Any]:
    """Return the confusion matrix and the most confused pairs of classes."""
    return {"matrix": matrix(evaluation), "confused": confused(evaluation)}


def matrix(evaluation: dict[str, Any]) -> list[list[tuple[int, float]]] | None:
    """Return each count with its share of the row, or None if there are too many classes to show."""
    if len(evaluation["classes"]) > MAX_MATRIX_CLASSES:
        return None
    return [[(count, count / max(1, sum(row))) for count in row] for row in evaluation["confusion"]]


def confused(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the pairs of classes that the model confuses, most frequent first."""
    names, counts = evaluation["classes"], evaluation["confusion"]
    pairs = [
        {"target": names[i], "predicted": names[j], "count": count, "share": count / sum(row)}
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if count and i != j
    ]
    return sorted(pairs, key=lambda pair: -pair["count"])[:MAX_CONFUSED_PAIRS]


def outcomes(predictions: Path, evaluation: Mapping[str, Any]) -> Outcomes:
    """Return the content of predictions.csv."""
    from workflow_lib.metrics import classes

    return classes.outcomes(predictions, evaluation["classes"])


TASK = Task(
    targets="classes",
    metrics={"accuracy": "accuracy", "macro_f1": "macro F1", "roc_auc": "ROC AUC", "log_loss": "log loss"},
    curve=("accuracy", "Accuracy"),
    ranges={"accuracy": SHARE, "macro_f1": SHARE, "roc_auc": SHARE, "log_loss": POSITIVE, "loss": POSITIVE},
    larger_is_better=True,
    study_metric="val_accuracy",
    settings=("label_smoothing", "focal_gamma", "class_weights", "sampling"),
    averaging=AVERAGING,
    objective=objective,
    evaluate=evaluate,
    onnx=Onnx(output="logit", score=("accuracy", "Accuracy"), score_of=correct, probabilities=probabilities),
    chapter=Chapter("classes", "Classes", chapter_values),
    predicted=predicted,
    outcomes=outcomes,
)
