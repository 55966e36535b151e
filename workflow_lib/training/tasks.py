"""What a task makes of a batch: what the model sees, the loss it is trained by, the sums that metrics come from.

                    model                                     training loss             metrics of the validation
    classification  [B, ...] to logits [B, classes]           cross-entropy             val_loss, val_accuracy
    regression      [B, ...] to standardised targets [B, k]   squared error             val_loss, val_mae (of the data)
    language        tokens [B, T] to logits [B, T, tokens]    cross-entropy a token     val_loss, val_accuracy

A loss is a mean over samples, so that it is the same however the batch is cut into parts. Validation is always by the
plain loss, whatever the training smooths or weighs: runs can be compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, final

import torch
from torch import Tensor
from torch.nn import functional

from workflow_lib.errors import ConfigError

if TYPE_CHECKING:
    from workflow_lib.config.run import Training
    from workflow_lib.data import ModelSpec


class Task(ABC):
    """The part of the training that differs between tasks."""

    sums: tuple[str, ...]  # what `measure` adds up, in this order

    def parts(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What the model takes, and what it is compared with."""
        return inputs, targets

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of the samples, to train by."""

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample, whose mean is `loss`."""

    def mixed_loss(self, outputs: Tensor, targets: Tensor, others: Tensor, weights: Tensor) -> Tensor:
        """The mean loss of samples that were mixed with others: each has its weight in its own, the other the rest."""
        mine, theirs = self.losses(outputs, targets), self.losses(outputs, others)
        return (weights * mine + (1 - weights) * theirs).mean()

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sums over these samples in float64, on the device of the outputs, without waiting for it."""

    @abstractmethod
    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The metrics of the validation from its sums."""


@final
class Classification(Task):
    """One class a sample."""

    sums = ("loss", "correct", "samples")

    def __init__(self, *, smoothing: float = 0.0, focal_gamma: float = 0.0, weights: Tensor | None = None) -> None:
        self._smoothing, self._gamma, self._weights = smoothing, focal_gamma, weights

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self._gamma or self._weights is not None:
            return self.losses(outputs, targets).mean()
        return functional.cross_entropy(outputs, targets, label_smoothing=self._smoothing)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=self._smoothing)
        if self._gamma:  # Lin et al., ICCV 2017: (1 - p)^gamma
            known = functional.log_softmax(outputs, 1, dtype=torch.float32).gather(1, targets[:, None]).squeeze(1)
            # the bound keeps the slope of the power finite where p rounds to 1
            each = each * (-known.expm1()).clamp_min(1e-7).pow(self._gamma)
        return each if self._weights is None else each * self._weights[targets]

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = functional.cross_entropy(outputs, targets, reduction="sum")
        return _summed(loss, (outputs.argmax(1) == targets).sum(), len(targets))

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"val_loss": sums["loss"] / sums["samples"], "val_accuracy": sums["correct"] / sums["samples"]}


@final
class Regression(Task):
    """Numbers, which the training sees standardised; ``std`` are their deviations in the data."""

    sums = ("loss", "error", "samples")

    def __init__(self, *, std: Sequence[float] = (), device: torch.device | None = None) -> None:
        self._std = torch.tensor(std or 1.0, dtype=torch.float64, device=device)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(outputs, targets.view_as(outputs))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(outputs, targets.view_as(outputs), reduction="none").mean(1)

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        difference = outputs.double() - targets.view_as(outputs).double()
        errors = difference.abs() * self._std
        return _summed(difference.square().mean(1).sum(), errors.mean(1).sum(), len(targets))

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"val_loss": sums["loss"] / sums["samples"], "val_mae": sums["error"] / sums["samples"]}


@final
class Language(Task):
    """The next token, at every place of a sample."""

    sums = ("loss", "correct", "tokens")

    def __init__(self, *, smoothing: float = 0.0) -> None:
        self._smoothing = smoothing

    def parts(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return inputs[:, :-1], inputs[:, 1:]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), label_smoothing=self._smoothing)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = functional.cross_entropy(
            outputs.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=self._smoothing
        )
        return each.view(targets.shape).mean(1)

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="sum")
        return _summed(loss, (outputs.argmax(2) == targets).sum(), targets.numel())

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"val_loss": sums["loss"] / sums["tokens"], "val_accuracy": sums["correct"] / sums["tokens"]}


def build(
    training: Training,
    spec: ModelSpec,
    device: torch.device,
    *,
    counts: Sequence[int],
    target_std: Sequence[float] = (),
) -> Task:
    """The task of the data, with the loss that the training asks for; ``counts`` are the samples of each class."""
    if spec.task == "regression":
        return Regression(std=target_std, device=device)
    if spec.task == "language":
        return Language(smoothing=training.label_smoothing)
    weights = class_weights(training.class_weights, counts)
    return Classification(
        smoothing=training.label_smoothing,
        focal_gamma=training.focal_gamma,
        weights=None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device),
    )


def class_weights(setting: Literal["balanced"] | Sequence[float] | None, counts: Sequence[int]) -> list[float] | None:
    """The weight of each class; balanced ones are inverse to its samples, and 1 in the mean over all samples."""
    if setting is None:
        return None
    if setting == "balanced":
        return [sum(counts) / (len(counts) * count) for count in counts]
    if len(setting) != len(counts):
        raise ConfigError(
            f"training.class_weights: {len(setting)} weights; the data has {len(counts)} classes, and each needs one"
        )
    return [float(weight) for weight in setting]


def _summed(loss: Tensor, other: Tensor, count: int) -> Tensor:
    return torch.stack([loss.double(), other.double(), loss.new_full((), count, dtype=torch.float64)])
