"""A validation. It can stop before any batch: its sums and its place are part of the state."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from workflow_lib.tasks import Objective
from workflow_lib.training.agreement import Agreement
from workflow_lib.training.divergence import check_finite
from workflow_lib.training.own_validation import OwnValidation
from workflow_lib.training.state import EpochMetrics, Named, State

if TYPE_CHECKING:
    from workflow_lib.data import MappedSplit, Split

MAX_PENDING_BATCHES = 32  # between two reads of their sums, since each read waits for the device


class Validation:
    """The validation batches of one rank, and the sums over all ranks."""

    def __init__(
        self, state: State, objective: Objective, split: Split | MappedSplit, agreement: Agreement, *, batch_size: int
    ) -> None:
        self._state, self._objective, self._split, self._agreement = state, objective, split, agreement
        self._batch_size = batch_size
        is_own = state.step is not None and state.step.has_own_validation()
        self._own = OwnValidation(state) if is_own else None
        self._sums = self._own.sums if self._own is not None else objective.sums
        # sums of batches that are not in ``progress.validation`` yet, and what these batches add to the user's metrics
        self._pending: list[torch.Tensor] = []
        self._contributions: list[Named] = []
        are_large = state.measures is not None and state.measures.are_large
        self._most_pending = 1 if are_large else MAX_PENDING_BATCHES

    def start(self) -> None:
        """Set the sums to zero."""
        self._state.progress.cursor.val_index = 0
        self._state.progress.validation = dict.fromkeys(self._sums, 0.0)
        if self._state.measures is not None:
            self._state.measures.reset()

    def run(self, before_batch: Callable[[], None], after_batch: Callable[[], None]) -> None:
        """Validate the rest of the split, from the cursor. ``before_batch`` may save the state, or raise to stop."""
        if self._state.progress.validation.keys() != set(self._sums):
            self.start()  # it was stopped by another version, which had other sums
        state, cursor, world = self._state, self._state.progress.cursor, self._state.ranks.world_size
        zeros = torch.zeros(len(self._sums), dtype=torch.float64, device=state.device)
        state.module.eval()
        self._agreement.share_buffers(state.module)
        count = math.ceil(len(self._split) / self._batch_size)
        mine = range(cursor.val_index + state.ranks.rank, count, world)
        rows = (slice(number * self._batch_size, (number + 1) * self._batch_size) for number in mine)
        with contextlib.closing(self._split.stream(rows)) as batches:
            while cursor.val_index < count:
                before_batch()
                sys.audit("everstep", "validate")
                batch = next(batches, None)
                sums, contribution = self._measure(*batch) if batch else (zeros, {})
                self._pending.append(sums)
                self._contributions.append(contribution)
                if batch is None and state.parallel.is_shared:  # the others need this rank's shards
                    self._measure(*self._split.batch(slice(0, 1)))
                cursor.val_index += world
                if len(self._pending) == self._most_pending:
                    self.add_pending()
                after_batch()
        self.add_pending()
        sys.audit("everstep", "validated")

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the finished validation."""
        means = self._objective.metrics if self._own is None else self._own.metrics
        return means(self._state.progress.validation)

    def add_pending(self) -> None:
        """Add the pending batches to the sums in the state, in the order of batches, then of ranks.

        A collective: all ranks call it, with the same number of pending batches.
        """
        if not self._pending:
            return
        cursor, sums = self._state.progress.cursor, self._state.progress.validation
        by_rank = self._agreement.all_gather(torch.stack(self._pending).cpu())
        self._pending = []
        for batch in zip(*(values.tolist() for values in by_rank), strict=True):
            for values in batch:
                for name, value in zip(self._sums, values, strict=True):
                    sums[name] += value
        self._add_contributions()
        check_finite({"step": cursor.step, "val_loss": sums["loss"]})

    def own_metrics(self) -> EpochMetrics:
        """Return the metrics of `training.metrics` over the split, on all ranks, and forget their state."""
        state = self._state
        if state.measures is None:
            return {}
        found = state.peers.broadcast(state.measures.values() if state.ranks.is_main else None)
        state.measures.reset()
        return {f"val_{label}": value for label, value in found.items()}

    def _add_contributions(self) -> None:
        """Add what the pending batches contribute to the metrics on rank 0, in the order of batches, then of ranks."""
        state, contributions, self._contributions = self._state, self._contributions, []
        if state.measures is None:
            return
        mine = {
            f"{number}/{name}": value.cpu().contiguous()
            for number, contribution in enumerate(contributions)
            for name, value in contribution.items()
        }
        by_rank = state.peers.gather_tensors(mine)
        for number in range(len(contributions)) if state.ranks.is_main else ():
            for named in by_rank:
                start = f"{number}/"
                if part := {k.removeprefix(start): value for k, value in named.items() if k.startswith(start)}:
                    state.measures.add(part)

    def _measure(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, Named]:
        """Return the sums of a batch, and what it adds to the user's metrics."""
        inputs, targets = self._objective.parts(inputs, targets)
        if self._own is not None:
            return self._own.measure(inputs, targets), {}
        with self._state.autocast():
            outputs = self._state.parallel.eval_forward(inputs, self._state.ema).float()
        measures = self._state.measures
        return (
            self._objective.measure(outputs, targets),
            {} if measures is None else measures.contribution(outputs, targets),
        )
