"""The computation of an optimizer step: forward and backward passes, the update of the weights, and their average."""

from __future__ import annotations

import contextlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from workflow_lib.checkpoint.saver import Saver
from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.runtime.torch_internals import unwrapped_step
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


class Computation(ABC):
    """The computation of optimizer steps by one rank. It changes the state; the trainer commits it."""

    def __init__(
        self,
        state: State,
        objective: Objective,
        batches: Batches,
        shared_state: SharedState,
        divergence: Divergence,
        saver: Saver,
    ) -> None:
        self._run, self._ranks, self._state, self._objective = state.run, state.ranks, state, objective
        self._batches, self._shared_state, self._divergence, self._saver = batches, shared_state, divergence, saver
        self._is_augmenting = is_augmenting(state.run.augment) or is_mixing(state.run.augment)

    @abstractmethod
    def warm_up(self, split: Split | MappedSplit, poll: Callable[[], object]) -> None:
        """Run passes whose results are thrown away, so that no pass of the training is the first of its process."""

    @abstractmethod
    def step(
        self, micro_batches: list[MicroBatch], batches: Iterator[Batch], poll: Callable[[], object]
    ) -> list[tuple[torch.Tensor, int]]:
        """Compute an optimizer step; return the losses of its micro-batches with their sizes.

        ``poll`` is called between micro-batches. If it raises, the last commit is still complete.
        """

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(
            self._run.schedule,
            self._run.optimizer.lr,
            self._state.progress.cursor.step,
            length=self._batches.length,
            plateau=self._state.progress.plateau,
        )

    def _parts(self, micro_batch: MicroBatch, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Return inputs and targets of a micro-batch, augmented; and, if they are mixed, the others with the shares."""
        run, cursor = self._run, self._state.progress.cursor
        inputs, targets = self._objective.parts(*batch)
        if not self._is_augmenting:
            return inputs, targets, None
        key: Any = {"seed": run.seed, "epoch": cursor.epoch}
        return augmented(run.augment, inputs, targets, micro_batch.occurrence_ids, micro_batch.mixing_partners, **key)


class Passes(Computation):
    """Forward and backward passes of the model with the loss of the task, and one step of its optimizer."""

    def warm_up(self, split: Split | MappedSplit, poll: Callable[[], object]) -> None:
        """Run passes of each size: DDP sums gradients in other buckets in its first pass than later.

        A model that cannot be compiled fails here.
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

    def step(
        self, micro_batches: list[MicroBatch], batches: Iterator[Batch], poll: Callable[[], object]
    ) -> list[tuple[torch.Tensor, int]]:
        parallel = self._state.parallel
        if len(micro_batches) > 1:
            self._state.back_up()
        losses = []
        parallel.zero_grad()
        for number, micro_batch in enumerate(micro_batches):
            if number:
                poll()  # a due save waits for the next step; a stop raises
            sys.audit("everstep", "fetch", micro_batch.samples)
            is_last = number == len(micro_batches) - 1
            losses.append((self._backward(micro_batch, next(batches), is_last=is_last), len(micro_batch)))
        parallel.take_gradients()
        self._saver.wait_copied()
        sys.audit("everstep", "optimizer")
        self._update(losses)
        return losses

    def _backward(self, micro_batch: MicroBatch, batch: Batch, *, is_last: bool) -> torch.Tensor:
        """Add the gradients of a micro-batch; return the mean loss of its samples, detached."""
        objective, cursor, parallel = self._objective, self._state.progress.cursor, self._state.parallel
        inputs, targets, mixed = self._parts(micro_batch, batch)
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

    def _update(self, losses: list[tuple[torch.Tensor, int]]) -> None:
        """Take one optimizer step, given the losses of its micro-batches and their sizes, and update the average."""
        state, training = self._state, self._run.training
        parameter_groups.set_learning_rate(state.optimizer, self.learning_rate)
        norm = None
        if training.clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            norm = state.parallel.clip(training.clip_norm)
        self._divergence.watch(losses, state.parallel.parameters, norm)
        if state.scaler.is_enabled():
            state.scaler.step(state.optimizer)
            state.scaler.update()
        else:
            self._step_optimizer()
        sys.audit("everstep", "stepped")
        if state.ema is not None:
            state.update_averages()
            sys.audit("everstep", "averaged")

    @cached_property
    def _step_optimizer(self) -> Callable[[], None]:
        return unwrapped_step(self._state.optimizer)
