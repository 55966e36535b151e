"""The computation of an optimizer step: forward and backward passes, the update of the weights, and their average."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.runtime.torch_internals import foreach_lerp_, unwrapped_step
from workflow_lib.tasks import Objective
from workflow_lib.training import parameter_groups
from workflow_lib.training.augment import augmented, is_augmenting, is_mixing
from workflow_lib.training.batches import Batches, MicroBatch
from workflow_lib.training.divergence import Divergence
from workflow_lib.training.model import explain_compiler
from workflow_lib.training.optimizers import learning_rate
from workflow_lib.training.state import State

if TYPE_CHECKING:
    from workflow_lib.data import Batch, MappedSplit, Split

WARM_UP_PASSES = 2


class Passes:
    """The passes of one rank. They change the state; the trainer commits it."""

    def __init__(
        self, state: State, objective: Objective, batches: Batches, shared_state: SharedState, divergence: Divergence
    ) -> None:
        self._run, self._ranks, self._state, self._objective = state.run, state.ranks, state, objective
        self._batches, self._shared_state, self._divergence = batches, shared_state, divergence
        self._is_augmenting = is_augmenting(state.run.augment) or is_mixing(state.run.augment)
        self._optimizer_step = unwrapped_step(state.optimizer)

    def warm_up(self, split: Split | MappedSplit, poll: Callable[[], object]) -> None:
        """Run passes whose results are thrown away, so that no pass of the training is the first of its process.

        DDP sums gradients in other buckets in its first pass than later. A model that cannot be compiled fails here.
        """
        is_compiled = self._run.training.compile
        if self._ranks.world_size == 1 and not self._state.parallel.is_shared and not is_compiled:
            return
        try:
            with self._shared_state.working(self._ranks.local_rank) if is_compiled else contextlib.nullcontext():
                self._warm_up(split, poll)
        except RuntimeError as error:
            explain_compiler(error)
            raise

    def _warm_up(self, split: Split | MappedSplit, poll: Callable[[], object]) -> None:
        self._state.set_training()
        rows = {stop - start: slice(start, stop) for start, stop in self._batches.spans}
        for micro_batch in rows.values():  # each size is compiled separately
            inputs, targets = self._objective.parts(*split.batch(micro_batch))
            for _ in range(WARM_UP_PASSES):
                poll()
                sys.audit("everstep", "warm-up")
                with self._state.autocast():
                    self._objective.loss(self._state.parallel.forward(inputs), targets).backward()
        self._state.parallel.zero_grad()

    def backward(self, micro_batch: MicroBatch, batch: Batch, *, is_last: bool) -> torch.Tensor:
        """Add the gradients of a micro-batch; return the mean loss of its samples, detached."""
        run, objective, cursor, parallel = self._run, self._objective, self._state.progress.cursor, self._state.parallel
        inputs, targets = objective.parts(*batch)
        mixed = None
        if self._is_augmenting:
            key: Any = {"seed": run.seed, "epoch": cursor.epoch}
            ids, partners = micro_batch.occurrence_ids, micro_batch.mixing_partners
            inputs, targets, mixed = augmented(run.augment, inputs, targets, ids, partners, **key)
        with contextlib.nullcontext() if is_last else parallel.no_sync():
            # from here on ranks wait for each other: a rank that does not tick is the one that is late
            self._shared_state.tick(self._ranks.local_rank, cursor.step)
            sys.audit("everstep", "forward", inputs)
            with self._state.autocast():
                outputs = parallel.forward(inputs)
                if mixed is None:
                    loss = objective.loss(outputs, targets)
                else:
                    loss = objective.mixed_loss(outputs, targets, *mixed)
            sys.audit("everstep", "backward")
            # the share of a rank's mean in the mean of the global batch; averaging over ranks divides by world_size
            share = len(micro_batch) * self._ranks.world_size / self._batches.size
            self._state.scaler.scale(loss if share == 1.0 else loss * share).backward()
        return loss.detach()

    def update(self, losses: list[tuple[torch.Tensor, int]]) -> None:
        """Take one optimizer step, given the losses of its micro-batches and their sizes, and update the average."""
        state, training = self._state, self._run.training
        parameter_groups.set_learning_rate(state.optimizer, self.learning_rate)
        norm = None
        if training.clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            norm = state.parallel.clip(training.clip_norm)
        self._divergence.watch(losses, norm)
        if state.scaler.is_enabled():
            state.scaler.step(state.optimizer)
            state.scaler.update()
        else:
            self._optimizer_step()
        sys.audit("everstep", "stepped")
        if state.ema is not None and training.ema_decay is not None:
            step = state.progress.cursor.step
            # smaller in the first steps, so that the random initial weights do not remain in the average
            decay = min(training.ema_decay, (1 + step) / (10 + step))
            live = [parameter.detach() for parameter in state.parallel.parameters]
            foreach_lerp_(list(state.ema.values()), live, 1 - decay)
            sys.audit("everstep", "averaged")

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(
            self._run.schedule,
            self._run.optimizer.lr,
            self._state.progress.cursor.step,
            steps_per_epoch=self._batches.steps_per_epoch,
            epochs=self._run.training.epochs,
            plateau=self._state.progress.plateau,
        )
