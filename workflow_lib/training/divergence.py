"""Detection of losses and gradients that are not finite, before any state after them is saved.

On the CPU every loss and gradient is checked in its own step. On a GPU the program runs ahead, and reading a number
waits until the GPU has computed it. So results are read after ``MAX_PENDING_STEPS`` steps, before each validation, and
before each save.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from torch import nn

from workflow_lib.checkpoint.saver import Saver
from workflow_lib.errors import DivergedError
from workflow_lib.store.events import EventLog
from workflow_lib.training.batches import Batches
from workflow_lib.training.state import State

MAX_PENDING_STEPS = 64
SHOWN_SAMPLES = 20


class Divergence:
    """The check of one process's steps."""

    def __init__(
        self, state: State, batches: Batches, *, saver: Saver, events: EventLog, waits_for_device: bool
    ) -> None:
        self._state, self._batches, self._saver, self._events = state, batches, saver, events
        self._waits_for_device = waits_for_device
        self._pending: list[tuple[int, torch.Tensor]] = []  # step, and the sum of its losses and gradients

    def watch(
        self, losses: list[tuple[torch.Tensor, int]], weights: Sequence[nn.Parameter], norm: torch.Tensor | None = None
    ) -> None:
        """Check losses, with their numbers of samples, and the gradients of weights, by their norm if it is known.

        Raises DivergedError: on the CPU at once, else in a later `check_pending`. With a loss scaler gradients are not
        checked: it skips a step whose gradient overflows, and lowers the scale.
        """
        state, step = self._state, self._state.progress.cursor.step
        values = [loss for loss, _ in losses]
        if norm is not None and not state.scaler.is_enabled():
            values.append(norm)
        elif not state.scaler.is_enabled():
            values += [weight.grad.sum() for weight in weights if weight.grad is not None]
        if self._waits_for_device:
            # the sum is finite only if every value is
            self._pending.append((step, torch.stack([value.float() for value in values]).sum()))
            if len(self._pending) == MAX_PENDING_STEPS:
                self.check_pending()
        elif not all(math.isfinite(value.item()) for value in values):
            self._end(step, [math.isfinite(loss.item()) for loss, _ in losses])

    def check_pending(self) -> None:
        """Read the results of all steps so far. Raises DivergedError for the first that is not finite."""
        if not self._pending:
            return
        (steps, sums), self._pending = zip(*self._pending, strict=True), []
        for step, is_finite in zip(steps, torch.stack(sums).isfinite().tolist(), strict=True):
            if not is_finite:
                self._end(step, [])

    def _end(self, step: int, are_finite: list[bool]) -> NoReturn:
        """Raise DivergedError with the samples: those of the micro-batches whose loss is not finite, else of all ranks.

        ``are_finite`` has an entry for each loss of the step; it is empty if the losses are not known one by one.
        """
        batches = self._batches
        number, place = divmod(step, batches.steps_per_epoch)  # not the cursor's: it may be in the next epoch by now
        epoch, start = batches.epoch(number), place * batches.size
        micro_batches = zip(epoch.micro_batches(start), are_finite, strict=False)
        samples = [sample for batch, is_finite in micro_batches if not is_finite for sample in batch.samples.tolist()]
        what = "loss" if samples else "gradient" if are_finite else "loss or gradient"
        samples = samples or epoch.samples[start : start + batches.size].tolist()
        self._events.append("diverged", what=what, step=step + 1, epoch=number + 1, samples=samples)
        if not self._state.parallel.is_shared:
            self._saver.wait()  # a running save is of an earlier state; of a shared model it would wait for all ranks
        shown = ", ".join(map(str, samples[:SHOWN_SAMPLES])) + (", ..." if len(samples) > SHOWN_SAMPLES else "")
        raise DivergedError(
            f"the training diverged: a {what} of step {step + 1} (epoch {number + 1}) is not finite, and nothing "
            f"was saved since. Its samples, by their number in the training split (all are in events.jsonl): {shown}. "
            f"A lower optimizer.lr, a warm-up or training.clip_norm may help"
        )


def check_finite(row: Mapping[str, float | None]) -> None:
    """Raise DivergedError if a metric of the epoch is not finite."""
    for name, value in row.items():
        if value is not None and not math.isfinite(value):
            raise DivergedError(
                f"the training diverged: {name} is {value} after epoch {row['epoch']} (step {row['step']}). "
                f"A lower optimizer.lr, a warm-up or training.clip_norm may help"
            )
