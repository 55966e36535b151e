"""A loss of the user, in place of that of the task: `training.loss`.

It is called with outputs and targets of a micro-batch, and returns the loss of each sample, or one number, their mean.
Either way the gradient of a step is that of the mean over the samples of the batch, over all micro-batches and ranks.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

from workflow_lib import plugins
from workflow_lib.errors import ConfigError
from workflow_lib.runtime.seed import capture_rng, restore_rng
from workflow_lib.tasks import Objective, Pairs

if TYPE_CHECKING:
    from workflow_lib.config.run import Training

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3  # relative; far above rounding, far below what depends on the division of a batch


def with_own_loss(
    task: Objective, training: Training, device: torch.device, *, ranks: int = 1, is_main: bool = True
) -> Objective:
    """Return the objective with the loss of `training.loss`, or the task's own objective if there is none."""
    if training.loss is None:
        return task
    parts = training.accumulation_steps * ranks
    return OwnLoss(task, training.loss, training.loss_params, device, warns_of=parts if is_main else 1)


@final
class UserLoss:
    """The function of `training.loss`, or an object of the class, whose results are checked."""

    def __init__(self, target: str, params: Mapping[str, Any], device: torch.device) -> None:
        self._target, self._function = target, built(target, params, device)
        buffers = dict(self._function.named_buffers()) if isinstance(self._function, nn.Module) else {}
        self._buffers = {name: (buffer, buffer._version) for name, buffer in buffers.items()}

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return what the function returns: the loss of each sample [n, any], or one number, their mean."""
        with plugins.user_code_errors(f"training.loss: {self._target}"):
            value = self._function(outputs, targets)
        is_number = isinstance(value, torch.Tensor) and value.is_floating_point()
        if not is_number or (value.dim() and len(value) != len(targets)):
            is_tensor = isinstance(value, torch.Tensor)
            given = f"{value.dtype} {tuple(value.shape)}" if is_tensor else type(value).__name__
            raise ConfigError(
                f"training.loss: {self._target} returns {given} for {len(targets)} samples; allowed: a tensor of "
                f"floats, with the loss of each sample or their mean"
            )
        self._check_buffers()
        result: torch.Tensor = value
        return result

    def _check_buffers(self) -> None:
        """Raise ConfigError if a call changed a buffer, which no checkpoint holds."""
        for name, (buffer, version) in self._buffers.items():
            if buffer._version != version:
                raise ConfigError(
                    f"training.loss: {self._target} changes its buffer `{name}`, and a checkpoint has no state of a "
                    f"loss; keep it in the model"
                )


@final
class OwnLoss(Objective):
    """The user's loss and the task's metrics; `val_loss` is the user's loss."""

    def __init__(
        self, task: Objective, target: str, params: Mapping[str, Any], device: torch.device, *, warns_of: int = 1
    ) -> None:
        self._task, self._target, self._parts = task, target, warns_of
        self.sums = ("loss", "count", *(f"task_{name}" for name in task.sums))
        self._value = UserLoss(target, params, device)

    def parts(self, inputs: torch.Tensor, targets: torch.Tensor) -> Pairs:
        return self._task.parts(inputs, targets)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        value = self._value(outputs, targets)
        if self._parts > 1 and value.dim() == 0:
            self._check_division(outputs, targets)
        return value.mean()

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        value = self._value(outputs, targets)
        if value.dim() == 0:
            raise ConfigError(
                f"training.loss: {self._target} returns one number for a batch, and augment.mixup and augment.cutmix "
                f"need the loss of each sample; return a tensor with a value for each sample, or mix no samples"
            )
        return value.flatten(1).mean(1) if value.dim() > 1 else value

    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        samples = len(targets)
        loss = (self._value(outputs, targets).double().mean() * samples).detach()
        own = torch.stack([loss, torch.full_like(loss, samples)])
        return torch.cat([own, self._task.measure(outputs, targets)])

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        task = {name.removeprefix("task_"): value for name, value in sums.items() if name.startswith("task_")}
        return {**self._task.metrics(task), "val_loss": sums["loss"] / sums["count"]}

    def _check_division(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Warn, once, if the loss of a batch is not the mean of the losses of its halves."""
        half, before = len(targets) // 2, capture_rng(outputs.device)
        if not half:
            return
        with torch.no_grad():
            pieces = (slice(0, 2 * half), slice(0, half), slice(half, 2 * half))
            whole, *halves = (float(self._value(outputs[piece].detach(), targets[piece])) for piece in pieces)
        restore_rng(before)
        parts, self._parts = self._parts, 1
        if abs(whole - sum(halves) / 2) > TOLERANCE * max(abs(whole), *map(abs, halves)):
            logger.warning(
                "training.loss: %s of a batch is not the mean of its halves (%.6g and %.6g give %.6g): it is computed "
                "for each of the %d parts of a batch (training.accumulation_steps x ranks), so that the result depends "
                "on their number; it does not if the loss of each sample is returned",
                self._target,
                *halves,
                whole,
                parts,
            )


def built(target: str, params: Mapping[str, Any], device: torch.device) -> Callable[..., Any]:
    """Return the function with its parameters, or an object of the class. Raises ConfigError if it has weights."""
    found = plugins.load_object("loss", target)
    if not inspect.isclass(found):
        return functools.partial(found, **params)
    with plugins.user_code_errors(f"training.loss: {target}"):
        made = found(**params)
    if not callable(made):
        raise ConfigError(f"training.loss: objects of {target} cannot be called with outputs and targets")
    if isinstance(made, nn.Module):
        if any(True for _ in made.parameters()):
            raise ConfigError(
                f"training.loss: {target} has weights of its own, which no optimizer would train and no checkpoint "
                f"would hold; put them into the model, or register constants as buffers"
            )
        return made.to(device)
    return made
