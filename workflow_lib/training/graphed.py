"""Optimizer steps as a graph: small models spend most of a step on launching kernels, and a graph is one launch.

    steps 1 to 3    computed as usual, to warm up
    step 4          computed as usual, then again by the graph from the same state; the two results are compared
    later steps     computed by the graph if the results were equal, else as usual

So a graph that computes anything else is never used. A step of a graph cannot be interrupted: stops and saves wait for
the next one, and the copies of a running save are awaited before it.

The graph takes the samples of data in the device's memory itself: the host gives it the place of the step in the epoch,
and replays it. Other data is copied to where the graph reads it.
"""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

from workflow_lib.checkpoint.saver import Saver
from workflow_lib.errors import ConfigError
from workflow_lib.runtime.seed import capture_rng, restore_rng
from workflow_lib.runtime.torch_internals import abandon_scaled_step, scaler_tensors
from workflow_lib.store.events import EventLog
from workflow_lib.training import optimizer_state
from workflow_lib.training.batches import Batches, Epoch, MicroBatch
from workflow_lib.training.divergence import Divergence
from workflow_lib.training.graphs import Graph
from workflow_lib.training.passes import LoadedBatch, Passes, Poll
from workflow_lib.training.resident import ResidentEpoch
from workflow_lib.training.state import Losses, Named, State, repeats_bits

if TYPE_CHECKING:
    from workflow_lib.data import Batch, MappedSplit, Split

logger = logging.getLogger(__name__)

WARM_UP_STEPS = 3
MAX_DISTANCE = 0.1  # of two results if the device does not repeat its bits, as a share of the change of the step


@final
class GraphedPasses:
    """The steps of `Passes`, computed by a graph; the trainer uses either."""

    def __init__(
        self,
        passes: Passes,
        graph: Graph,
        state: State,
        *,
        divergence: Divergence,
        saver: Saver,
        events: EventLog,
        is_required: bool,
        split: Split | MappedSplit,
        batches: Batches,
        keeps_gradients: bool = False,
    ) -> None:
        self._passes, self._state, self._divergence = passes, state, divergence
        self._saver, self._events, self._is_required = saver, events, is_required
        self._keeps_gradients = keeps_gradients  # of the step that is captured, if the capture fails
        self._graph: Graph | None = graph  # None once it has proved impossible
        self._warmed = 0
        self._resident = ResidentEpoch.of(split, batches)  # None if data is not in the device's memory
        self._inputs: list[LoadedBatch] = []  # memory that the graph reads then
        self._losses: Losses | None = None  # memory that the graph writes; None until it is captured

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self._passes.learning_rate

    def begin_epoch(self, number: int, epoch: Epoch) -> None:
        """Prepare for steps of an epoch."""
        self._passes.begin_epoch(number, epoch)
        if self._graph is not None and self._resident is not None:
            self._resident.begin(epoch)

    def warm_up(self, split: Split | MappedSplit, poll: Poll) -> None:
        """Run passes whose results are thrown away, so that no pass of the training is the first of its process."""
        self._passes.warm_up(split, poll)

    def step(self, micro_batches: list[MicroBatch], batches: Iterator[Batch], poll: Poll) -> Losses:
        """Compute an optimizer step; return the losses of its micro-batches with their sizes, until the next step."""
        if self._graph is None:
            return self._passes.step(micro_batches, batches, poll)
        if self._warmed < WARM_UP_STEPS:
            self._warmed += 1
            return self._graph.warm_up(functools.partial(self._passes.step, micro_batches, batches, poll))
        self._fill(micro_batches, batches, poll)
        self._saver.wait_copied()
        self._passes.prepare_update()
        if self._losses is None:
            return self._capture(self._graph)
        for point in ("forward", "backward") * len(micro_batches):
            sys.audit("everstep", point)
        sys.audit("everstep", "optimizer")
        self._graph.replay()
        sys.audit("everstep", "stepped")
        return self._losses

    def _fill(self, micro_batches: list[MicroBatch], batches: Iterator[Batch], poll: Poll) -> None:
        """Give the graph the data of a step. If ``poll`` raises, nothing of the state has changed."""
        if self._resident is not None:
            self._resident.move_to(self._state.progress.cursor.sample)
            if self._losses is not None:
                for micro_batch in micro_batches:
                    sys.audit("everstep", "fetch", micro_batch.samples)
                return
        loaded = self._passes.loaded(micro_batches, batches, poll)
        if self._resident is not None:
            for _ in loaded:  # if the capture fails, later steps take their data from the iterator
                pass
            return
        if self._inputs:
            for place, batch in zip(self._inputs, loaded, strict=True):
                place.copy_(batch)
        else:
            self._inputs = [batch.copy_to(self._state.device) for batch in loaded]

    def _compute(self) -> Losses:
        losses = self._passes.backward(self._inputs if self._resident is None else self._resident.micro_batches())
        self._passes.update(losses)
        return losses

    def _capture(self, graph: Graph) -> Losses:
        """Compute a step as usual and by the graph, compare them, and keep the graph if they are equal."""
        before, drawn, numbers = self._copies(), capture_rng(self._state.device), _numbers_in(self._state.module)
        losses, place = graph.watched(self._compute)
        losses = [(loss.clone(), samples) for loss, samples in losses]
        weights = self._state.parallel.parameters if self._keeps_gradients else []
        gradients = [(weight, weight.grad) for weight in weights]
        after, drawn_after = self._copies(), capture_rng(self._state.device)
        reason = f"the step waits for the GPU at {place}" if place is not None else None
        reason = reason or self._host_state_reason(drawn, drawn_after, numbers)
        if reason is None:
            try:
                captured = graph.capture(self._compute)
                self._restore(before, drawn)
                graph.replay()
                reason = self._difference(before, after, drawn_after)
            except Exception as error:
                reason = f"it cannot be captured: {_first_line(error)}"
                abandon_scaled_step(self._state.scaler)
            if reason is None:
                self._losses = captured
                self._tell("captured")
                return captured
            self._restore(after, drawn_after)
            for weight, gradient in gradients:
                weight.grad = gradient
        self._graph, self._inputs, self._resident = None, [], None
        self._tell("not captured", reason)
        return losses

    def _tell(self, event: str, reason: str | None = None) -> None:
        step = self._state.progress.cursor.step + 1
        if reason is None:
            logger.info("from step %d on, steps are computed by a CUDA graph", step)
            self._events.append("graph", result=event, step=step)
            return
        if self._is_required:
            raise ConfigError(f"runtime.cuda_graphs: on is impossible: {reason}; allowed: auto, off")
        logger.warning("steps are not computed by a CUDA graph: %s", reason)
        self._events.append("graph", result=event, step=step, reason=reason)

    def _tensors(self) -> Named:
        """Return all tensors that a step changes, by name."""
        state = self._state
        return {
            **dict(state.module.named_parameters()),
            **dict(state.module.named_buffers()),
            **{f"optimizer {name}": value for name, value in optimizer_state.tensors(state.optimizer).items()},
            **{f"average of {name}": value for name, value in (state.ema or {}).items()},
            **{f"scaler {number}": value for number, value in enumerate(scaler_tensors(state.scaler))},
            "loss sum": state.loss_sum,
            "log sum": state.log_sum,
            "is finite": self._divergence.is_finite,
            "finite steps": self._divergence.finite_steps,
        }

    def _copies(self) -> Named:
        """Return copies on the host: the device may have no room for them."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self._tensors().items()}

    def _restore(self, saved: Named, drawn: Named) -> None:
        for name, value in self._tensors().items():
            # a write into a frozen weight counts as a change, and would add it to the checkpoints
            if not _same_bits(value.detach().cpu(), saved[name]):
                value.detach().copy_(saved[name])
        restore_rng(drawn)

    def _difference(self, before: Named, after: Named, drawn_after: Named) -> str | None:
        """Return how the state differs from that after the step that was computed as usual, or None."""
        now, drawn = self._copies(), capture_rng(self._state.device)
        if names := [name for name in drawn if not torch.equal(drawn[name], drawn_after[name])]:
            return f"it draws other random numbers ({names[0]})"
        names = [name for name in now if not _same_bits(now[name], after[name])]
        if repeats_bits(self._state.device, self._state.run.training.determinism):
            return f"it gives other bits ({names[0]}, and {len(names) - 1} more)" if names else None
        moved, off = _distance(after, before), _distance(now, after)
        return None if off <= MAX_DISTANCE * moved else f"its result is {off:.3g} off, for a step of {moved:.3g}"

    def _host_state_reason(self, drawn: Named, drawn_after: Named, numbers: dict[str, Any]) -> str | None:
        """Return the change of something on the host, which a graph would not repeat, or None."""
        kept = [name for name in ("python", "numpy", "torch") if name != self._state.device.type]
        for name in kept if self._state.device.type == "cuda" else kept[:2]:
            if not torch.equal(drawn[name], drawn_after[name]):
                return f"the step draws random numbers on the CPU ({name})"
        for name, value in _numbers_in(self._state.module).items():
            if value != numbers.get(name, value):
                return f"the step changes an attribute of the model (`{name}`)"
        return None


def _numbers_in(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of all modules that are plain values."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, bool | int | float | str)
    }


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Compare two contiguous or equally strided CPU tensors; a NaN equals itself."""
    return torch.equal(*(value.contiguous().reshape(-1).view(torch.uint8) for value in (first, second)))


def _distance(first: Named, second: Named) -> float:
    """Return the Euclidean distance of all floating-point tensors together."""
    squares = [
        (value.double() - second[name].double()).square().sum().item()
        for name, value in first.items()
        if value.is_floating_point()
    ]
    return math.sqrt(sum(squares))


def _first_line(error: BaseException) -> str:
    """Return the first line of the error that came first: torch raises another one when it ends a failed capture."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0] or type(error).__name__
