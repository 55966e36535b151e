"""A training that diverges ends before the step that did is saved, and the samples of that step are named.

On the CPU every loss and gradient is looked at in its step. A device runs ahead of the program, and is not waited for:
it is asked after ``UNSEEN_STEPS`` steps, at the end of an epoch, and before each save.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NoReturn

import torch

from workflow_lib.checkpoint.saver import Saver
from workflow_lib.errors import DivergedError
from workflow_lib.store.events import EventLog
from workflow_lib.training.sampling import Sampling
from workflow_lib.training.state import State

UNSEEN_STEPS = 64
SHOWN_SAMPLES = 20


class Divergence:
    """Looks at the steps of one process."""

    def __init__(
        self, state: State, sampling: Sampling, *, saver: Saver, events: EventLog, waits_for_device: bool
    ) -> None:
        self._state, self._sampling, self._saver, self._events = state, sampling, saver, events
        self._waits_for_device = waits_for_device
        self._unseen: list[tuple[int, torch.Tensor]] = []

    def watch(self, losses: list[tuple[torch.Tensor, int]], norm: torch.Tensor | None) -> None:
        """A loss or gradient that is no number ends the training: on the CPU now, else at the next look back.

        A gradient that only overflowed the loss scale is not one: its step is left out, and the scale lowered.
        """
        state, step = self._state, self._state.progress.cursor.step
        seen = [one for one, _ in losses]
        if norm is not None and not state.scaler.is_enabled():
            seen.append(norm)
        elif not state.scaler.is_enabled():
            seen += [one.grad.sum() for one in state.parallel.parameters if one.grad is not None]
        if self._waits_for_device:
            self._unseen.append((step, torch.stack([one.float() for one in seen]).sum()))
            if len(self._unseen) == UNSEEN_STEPS:
                self.look_back()
        elif not all(math.isfinite(one.item()) for one in seen):
            self._end(step, [math.isfinite(one.item()) for one, _ in losses])

    def look_back(self) -> None:
        """All steps up to here had finite losses and gradients."""
        if not self._unseen:
            return
        (steps, sums), self._unseen = zip(*self._unseen, strict=True), []
        for step, is_finite in zip(steps, torch.stack(sums).isfinite().tolist(), strict=True):
            if not is_finite:
                self._end(step, [])

    def _end(self, step: int, are_finite: list[bool]) -> NoReturn:
        """Ends the training before the step is saved, and names its samples; of a loss, those that it is of."""
        sampling, epoch = self._sampling, self._state.progress.cursor.epoch
        begun = (step - epoch * sampling.steps_per_epoch) * sampling.batch
        batch = sampling.order(epoch)[begun : begun + sampling.batch]
        guilty = [window for window, is_finite in zip(sampling.windows, are_finite, strict=False) if not is_finite]
        rows = [row for start, stop in guilty or [(0, sampling.batch)] for row in batch[start:stop].tolist()]
        what = "loss" if guilty else "gradient" if are_finite else "loss or gradient"
        self._events.append("diverged", what=what, step=step + 1, epoch=epoch + 1, samples=rows)
        if not self._state.parallel.is_shared:
            self._saver.wait()  # a save that is under way is of an earlier state
        shown = ", ".join(map(str, rows[:SHOWN_SAMPLES])) + (", ..." if len(rows) > SHOWN_SAMPLES else "")
        raise DivergedError(
            f"the training diverged: a {what} of step {step + 1} (epoch {epoch + 1}) is not finite, and nothing "
            f"was saved since. Its samples, by their number in the training split (all are in events.jsonl): {shown}. "
            f"A lower optimizer.lr, a warm-up or training.clip_norm may help"
        )


def refuse_divergence(row: Mapping[str, float]) -> None:
    """Raises DivergedError if a metric of the row is no number."""
    for name, value in row.items():
        if not math.isfinite(value):
            raise DivergedError(
                f"the training diverged: {name} is {value} after epoch {row['epoch']} (step {row['step']}). "
                f"A lower optimizer.lr, a warm-up or training.clip_norm may help"
            )
