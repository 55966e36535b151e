"""The loss and the learning rate every `training.log_every_steps` steps.

The losses are summed on the device, and the sums are read seldom, since each read waits for the device. The rows are
part of the state, so a resume neither loses nor repeats one; the file in the workspace is a copy, to be read meanwhile.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch

from workflow_lib.checkpoint import CheckpointStore
from workflow_lib.files import write_atomic
from workflow_lib.results import steps
from workflow_lib.store import layout
from workflow_lib.store.events import EventLog
from workflow_lib.training.agreement import Agreement
from workflow_lib.training.batches import Batches
from workflow_lib.training.metrics_file import lines
from workflow_lib.training.parameter_groups import learning_rate_of
from workflow_lib.training.state import State

logger = logging.getLogger(__name__)

MAX_PENDING_STEPS = 64  # as with the check for divergence


class StepLog:
    """The log of a run, on each of its ranks. All ranks call each method."""

    def __init__(
        self,
        state: State,
        agreement: Agreement,
        batches: Batches,
        workspace: Path,
        store: CheckpointStore,
        events: EventLog,
    ) -> None:
        self._state, self._agreement, self._batches = state, agreement, batches
        self._every = state.run.training.log_every_steps
        self._pending: list[tuple[int, float, torch.Tensor]] = []  # step, learning rate, sum of this rank's losses
        self._path, self._store, self._events = layout.steps_file(workspace), store, events
        self._is_file_whole = False

    def add(self) -> None:
        """Add a row for the steps that are committed since the last one, if it is due."""
        if self._every is None:
            return
        state, step = self._state, self._state.progress.cursor.step
        if step % self._every == 0 or step == self._batches.length.total:
            self._pending.append((step, learning_rate_of(state.optimizer), state.log_sum.clone()))
            state.log_sum.zero_()
        if self._pending and step - self._pending[0][0] >= MAX_PENDING_STEPS:
            self.add_pending()

    def add_pending(self) -> None:
        """Read the sums so far, and add a row for each to the state and to the file. A collective.

        A sum that is not finite, and those after it, are of a training that diverged, and are left out.
        """
        if not self._pending:
            return
        state, sums = self._state, torch.stack([loss_sum for *_, loss_sum in self._pending]).cpu()
        by_rank = [values.tolist() for values in self._agreement.all_gather(sums)]
        before = int(state.log[-1, 0]) if len(state.log) else 0
        rows = []
        for (step, rate, _), values in zip(self._pending, zip(*by_rank, strict=True), strict=True):
            if not math.isfinite(sum(values)):
                break
            rows.append((step, rate, sum(values) / ((step - before) * self._batches.size)))
            before = step
        self._pending = []
        if not rows:
            return
        state.log = torch.cat((state.log, torch.tensor(rows, dtype=torch.float64)))
        self.write(len(rows))
        if state.ranks.is_main:
            self._events.append("logged", step=int(before), rows=len(rows))

    def write(self, new: int = 0) -> None:
        """Append the last ``new`` rows to the file, or write it as a whole if it may hold other rows than the state."""
        if self._every is None or not self._state.ranks.is_main:
            return
        rows, was_whole, self._is_file_whole = self._state.log, self._is_file_whole, False
        text = lines(steps.rows(rows[len(rows) - new :] if was_whole else rows))
        try:
            self._store.check_ownership()
            if was_whole:
                with self._path.open("ab") as file:
                    file.write(text)
            else:
                write_atomic(self._path, text)
            self._is_file_whole = True
        except OSError as error:
            logger.warning("cannot write the log of steps: %s. Training continues", error)
