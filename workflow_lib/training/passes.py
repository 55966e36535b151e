"""The computation of an optimizer step: forward and backward passes, the update of the weights, and their average."""

from __future__ import annotations

import contextlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

from workflow_lib.checkpoint.saver import Saver
from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.runtime.torch_internals import unwrapped_step
from workflow_lib.tasks import Objective
from workflow_lib.training.augment import augmented, epoch_key, is_augmenting, is_mixing
from workflow_lib.training.batches import Batches, Epoch, MicroBatch
from workflow_lib.training.divergence import Divergence
from workflow_lib.training.model import explain_compiler
from workflow_lib.training.optimizers import learning_rate
from workflow_lib.training.state import Losses, State
from workflow_lib.training.step_numbers import StepNumbers

if TYPE_CHECKING:
    from workflow_lib.data import Batch, MappedSplit, Split

WARM_UP_PASSES = 2

Poll: TypeAlias = Callable[[], object]


@dataclass(frozen=True)
class LoadedBatch:
    """A micro-batch and its data.

    inputs    inputs of its rows: of the samples, then of their mixing partners
    targets   targets of the same rows
    ids       int64 [b]: keys of the random numbers of augmentation
    partners  int64 [b]: the mixing partners, or None
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    ids: torch.Tensor
    partners: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.ids)

    def copy_to(self, device: torch.device) -> LoadedBatch:
        """Return a copy on the device."""
        inputs, targets, ids = (value.to(device, copy=True) for value in (self.inputs, self.targets, self.ids))
        return LoadedBatch(inputs, targets, ids, None if self.partners is None else self.partners.to(device, copy=True))

    def copy_(self, other: LoadedBatch) -> None:
        """Copy another micro-batch of the same size into the memory of this one."""
        self.inputs.copy_(other.inputs)
        self.targets.copy_(other.targets)
        self.ids.copy_(other.ids, non_blocking=True)
        if self.partners is not None and other.partners is not None:
            self.partners.copy_(other.partners, non_blocking=True)


class Steps(Protocol):
    """The optimizer steps of a rank, as the trainer takes them: see `Computation`."""

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""

    def warm_up(self, split: Split | MappedSplit, poll: Poll) -> None:
        """Run passes whose results are thrown away, so that no pass of the training is the first of its process."""

    def begin_epoch(self, number: int, epoch: Epoch) -> None:
        """Prepare for steps of an epoch, counted from 0."""

    def step(self, micro_batches: list[MicroBatch], batches: Iterator[Batch], poll: Poll) -> Losses:
        """Compute an optimizer step; return the losses of its micro-batches with their sizes."""


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
        *,
        is_captured: bool = False,
    ) -> None:
        self._run, self._ranks, self._state, self._objective = state.run, state.ranks, state, objective
        self._batches, self._shared_state, self._divergence, self._saver = batches, shared_state, divergence, saver
        self._is_augmenting = is_augmenting(state.run.augment) or is_mixing(state.run.augment)
        self._numbers = StepNumbers(state, is_captured=is_captured)
        self._is_captured = is_captured

    @abstractmethod
    def warm_up(self, split: Split | MappedSplit, poll: Poll) -> None:
        """Run passes whose results are thrown away, so that no pass of the training is the first of its process."""

    @abstractmethod
    def step(self, micro_batches: list[MicroBatch], batches: Iterator[Batch], poll: Poll) -> Losses:
        """Compute an optimizer step; return the losses of its micro-batches with their sizes.

        ``poll`` is called between micro-batches. If it raises, the last commit is still complete.
        """

    def begin_epoch(self, number: int, epoch: Epoch) -> None:
        """Prepare for steps of an epoch, counted from 0."""
        self._numbers.set_key(epoch_key(self._run.seed, number))

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

    def _parts(self, batch: LoadedBatch) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Return inputs and targets of a micro-batch, augmented; and, if they are mixed, the others with the shares."""
        inputs, targets = self._objective.parts(batch.inputs, batch.targets)
        if not self._is_augmenting:
            return inputs, targets, None
        return augmented(self._run.augment, inputs, targets, batch.ids, batch.partners, key=self._numbers.key)

    def loaded(self, micro_batches: list[MicroBatch], batches: Iterator[Batch], poll: Poll) -> Iterator[LoadedBatch]:
        """Yield each micro-batch with its data. A due save waits for the next step; a stop raises."""
        for number, micro_batch in enumerate(micro_batches):
            if number:
                poll()
            sys.audit("everstep", "fetch", micro_batch.samples)
            yield LoadedBatch(*next(batches), micro_batch.occurrence_ids, micro_batch.mixing_partners)


class Passes(Computation):
    """Forward and backward passes of the model with the loss of the task, and one step of its optimizer.

    A step is `backward`, then `update`: functions of tensors that stay at their places in memory, which never wait for
    the device. So `graphed` can capture both as a graph; `prepare_update` is what the host does before `update`.
    """

    def warm_up(self, split: Split | MappedSplit, poll: Poll) -> None:
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

    def _warm_up(self, split: Split | MappedSplit, poll: Poll) -> None:
        self._state.set_training()
        sizes = {stop - start: slice(start, stop) for start, stop in self._batches.spans}
        rows = [*sizes.values()]  # each size is compiled separately
        if len(rows) < self._batches.most_sizes:  # ranks exchange gradients: all of them make equally many passes
            rows *= self._batches.most_sizes
        for micro_batch in rows:
            inputs, targets = self._objective.parts(*split.batch(micro_batch))
            for _ in range(WARM_UP_PASSES):
                poll()
                sys.audit("everstep", "warm-up")
                with self._state.autocast():
                    self._objective.loss(self._state.parallel.forward(inputs), targets).backward()
        self._state.parallel.zero_grad()

    def step(self, micro_batches: list[MicroBatch], batches: Iterator[Batch], poll: Poll) -> Losses:
        if len(micro_batches) > 1:
            self._state.back_up()
        losses = self.backward(self.loaded(micro_batches, batches, poll))
        self._saver.wait_copied()
        sys.audit("everstep", "optimizer")
        self.prepare_update()
        self.update(losses)
        return losses

    def backward(self, batches: Iterable[LoadedBatch]) -> Losses:
        """Set the gradients to those of all micro-batches; return their losses, detached, with their sizes."""
        parallel, last = self._state.parallel, len(self._batches.spans) - 1
        parallel.zero_grad()
        losses = [(self._backward(batch, is_last=number == last), len(batch)) for number, batch in enumerate(batches)]
        parallel.take_gradients()
        return losses

    def _backward(self, batch: LoadedBatch, *, is_last: bool) -> torch.Tensor:
        """Add the gradients of a micro-batch; return the mean loss of its samples, detached."""
        objective, parallel = self._objective, self._state.parallel
        inputs, targets, mixed = self._parts(batch)
        with contextlib.nullcontext() if is_last else parallel.no_sync():
            # from here on ranks wait for each other: a rank that does not tick is the one that is late
            self._shared_state.tick(self._ranks.local_rank, self._state.progress.cursor.step)
            # whoever reads the inputs would wait for the device, which a step that is captured must not
            sys.audit("everstep", "forward", *(() if self._is_captured else (inputs,)))
            with self._state.autocast():
                outputs = parallel.forward(inputs)
                if mixed is None:
                    loss = objective.loss(outputs, targets)
                else:
                    loss = objective.mixed_loss(outputs, targets, *mixed)
            sys.audit("everstep", "backward")
            # the share of a rank's mean in the mean of the global batch; averaging over ranks divides by world_size
            share = len(batch) * self._ranks.world_size / self._batches.size
            self._state.scaler.scale(loss if share == 1.0 else loss * share).backward()
        return loss.detach()

    def prepare_update(self) -> None:
        """Set the numbers that the update of this step computes with."""
        self._numbers.set_learning_rate(self.learning_rate)
        if self._state.ema is not None:
            self._numbers.set_average_weight(self._state.average_weight)

    def update(self, losses: Losses) -> None:
        """Take one optimizer step, given the losses of its micro-batches and their sizes; update averages and sums."""
        state, training = self._state, self._run.training
        norm = None
        if training.clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            norm = state.parallel.clip(training.clip_norm)
        self._divergence.watch(losses, state.parallel.parameters, norm)
        with self._numbers.rates_in_memory():
            if state.scaler.is_enabled():
                state.scaler.step(state.optimizer)
                state.scaler.update()
            else:
                self._step_optimizer()
        sys.audit("everstep", "stepped")
        if state.ema is not None:
            state.update_averages(self._numbers.average_weight)
            sys.audit("everstep", "averaged")
        state.add_losses(losses)
        self._divergence.count_step()

    @cached_property
    def _step_optimizer(self) -> Callable[[], None]:
        return unwrapped_step(self._state.optimizer)
