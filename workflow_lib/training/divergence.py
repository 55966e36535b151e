"""Detection of losses and gradients that are not finite, before any state after them is saved.

On the CPU every loss and gradient is checked in its own step. On a GPU the program runs ahead, and reading a number
waits until the GPU has computed it. So a flag on the GPU, with the number of steps before it was set, is read at most a
few times a second, before each validation, and before each save.

Several ranks raise the error together, at the next vote after the step: so the rows of the log, which are sums over all
of them, can still be added.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from workflow_lib.checkpoint.saver import Saver
from workflow_lib.errors import DivergedError
from workflow_lib.store.events import EventLog
from workflow_lib.training.agreement import Agreement
from workflow_lib.training.batches import Batches
from workflow_lib.training.state import Losses, State

MIN_UNREAD_STEPS = 64
MIN_INTERVAL_S = 0.25
SHOWN_SAMPLES = 20


class Divergence:
    """The check of one process's steps.

    is_finite      bool, on the device: True while all losses and gradients were finite
    finite_steps   int64, on the device: steps since `begin_at` in which they were
    """

    def __init__(
        self,
        state: State,
        batches: Batches,
        agreement: Agreement,
        *,
        saver: Saver,
        events: EventLog,
        waits_for_device: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state, self._batches, self._agreement = state, batches, agreement
        self._saver, self._events = saver, events
        self._waits_for_device, self._clock = waits_for_device, clock
        self.is_finite = torch.ones((), dtype=torch.bool, device=state.device)
        self.finite_steps = torch.zeros((), dtype=torch.int64, device=state.device)
        self._first = self._read = 0  # steps of the run at the start of the attempt, and at the last read
        self._read_at = clock()
        self._found: dict[str, Any] | None = None

    @property
    def is_found(self) -> bool:
        """True if a loss or gradient of this rank is known not to be finite, and no error was raised yet."""
        return self._found is not None

    def explain(self, error: Exception) -> None:
        """Raise DivergedError from an error of this rank, such as one of the user's code, if its step has diverged."""
        if self._found is not None:
            raise DivergedError(self._found["message"]) from error

    def begin_at(self, step: int) -> None:
        """Count from this step of the run."""
        self._first = self._read = step

    def watch(self, losses: Losses, weights: Sequence[nn.Parameter], norm: torch.Tensor | None = None) -> None:
        """Check losses, with their numbers of samples, and the gradients of weights, by their norm if it is known.

        Raises DivergedError: a single rank on the CPU at once, else in a later `check_pending` or `raise_found`. With a
        loss scaler gradients are not checked: it skips a step whose gradient overflows, and lowers the scale.
        """
        state = self._state
        values = [loss for loss, _ in losses]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if state.scaler.is_enabled():
            gradients, norm = [], None
        if norm is not None:
            gradients = [norm]
        if self._waits_for_device:
            gradients = [value.coalesce().values() if value.is_sparse else value for value in gradients]
            # the largest absolute value is finite only if every value is; a sum or a product could overflow
            values += [nn.utils.get_total_norm(gradients, math.inf)] if gradients else []
            self.is_finite.logical_and_(torch.stack([value.float() for value in values]).isfinite().all())
        elif not all(math.isfinite(value.item()) for value in (*values, *(value.sum() for value in gradients))):
            self._note(state.progress.cursor.step, [math.isfinite(loss.item()) for loss, _ in losses])

    def count_step(self) -> None:
        """Count a step that is computed, after all its losses and gradients are watched."""
        if self._waits_for_device:
            self.finite_steps.add_(self.is_finite)

    def check_if_due(self) -> None:
        """Read the result of the steps so far if the last time is long ago. Raises DivergedError of a single rank."""
        if (
            self._waits_for_device
            and self._state.progress.cursor.step - self._read >= MIN_UNREAD_STEPS
            and self._clock() - self._read_at >= MIN_INTERVAL_S
        ):
            self._check_device()

    def check_pending(self) -> None:
        """Read the result of all steps so far. Raises DivergedError if it is not finite on any rank. A collective."""
        if self._waits_for_device:
            self._check_device()
        if any(self._agreement.any_of(self.is_found)):
            self.raise_found()

    def raise_found(self) -> NoReturn:
        """Raise DivergedError for the first rank whose loss is not finite, else for the first with a gradient.

        A collective: all ranks know that one of them has found something.
        """
        if not self._state.parallel.is_shared:
            self._saver.wait()  # a running save is of an earlier state; of a shared model it would wait for all ranks
        found = [found for found in self._agreement.peers.gather(self._found) if found is not None]
        first = min(found, key=lambda found: (found["step"], found["what"] != "loss"), default=None)
        raise DivergedError(self._agreement.peers.broadcast(first)["message"])

    def _check_device(self) -> None:
        if not self.is_finite.item():
            self._note(self._first + int(self.finite_steps.item()), [])
        self._read, self._read_at = self._state.progress.cursor.step, self._clock()

    def _note(self, step: int, are_finite: list[bool]) -> None:
        """Keep the message, with the samples: those of micro-batches whose loss is not finite, else of all ranks.

        ``are_finite`` has an entry for each loss of the step; it is empty if the losses are not known one by one.
        """
        if self._found is not None:
            return
        batches = self._batches
        number, place = divmod(step, batches.steps_per_epoch)  # not the cursor's: it may be in the next epoch by now
        epoch, start = batches.epoch(number), place * batches.size
        micro_batches = zip(epoch.micro_batches(start), are_finite, strict=False)
        samples = [sample for batch, is_finite in micro_batches if not is_finite for sample in batch.samples.tolist()]
        what = "loss" if samples else "gradient" if are_finite else "loss or gradient"
        samples = samples or epoch.samples[start : start + batches.size].tolist()
        self._events.append("diverged", what=what, step=step + 1, epoch=number + 1, samples=samples)
        shown = ", ".join(map(str, samples[:SHOWN_SAMPLES])) + (", ..." if len(samples) > SHOWN_SAMPLES else "")
        message = (
            f"the training diverged: a {what} of step {step + 1} (epoch {number + 1}) is not finite, and nothing "
            f"was saved since. Its samples, by their number in the training split (all are in events.jsonl): {shown}. "
            f"A lower optimizer.lr, a warm-up or training.clip_norm may help"
        )
        self._found = {"step": step, "what": what, "message": message}
        if self._state.ranks.world_size == 1:
            self.raise_found()


def check_finite(row: Mapping[str, float | None]) -> None:
    """Raise DivergedError if a metric is not finite. The row of a validation within an epoch has no whole ``epoch``."""
    for name, value in row.items():
        if value is not None and not math.isfinite(value):
            is_whole = isinstance(row.get("epoch"), int)
            place = f"epoch {row['epoch']} (step {row['step']})" if is_whole else f"step {row['step']}"
            raise DivergedError(
                f"the training diverged: {name} is {value} after {place}. "
                f"A lower optimizer.lr, a warm-up or training.clip_norm may help"
            )
