"""The computation of an optimizer step by a training step of the user; the counterpart of `passes`.

A step is one call of the user's `step`. Saves and stops wait for its end, so a checkpoint is of the state between two
calls. Each `optimizer.step()` first averages the gradients of its weights over the ranks, weighted by their samples.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from workflow_lib import plugins
from workflow_lib.errors import ConfigError
from workflow_lib.training.agreement import Agreement
from workflow_lib.training.batches import MicroBatch
from workflow_lib.training.passes import Computation, Poll
from workflow_lib.training.state import Losses
from workflow_lib.training.step_building import Joined
from workflow_lib.training.step_context import Context

if TYPE_CHECKING:
    from workflow_lib.data import Batch, MappedSplit, Split


class OwnPasses(Computation):
    """A call of the user's step."""

    def __init__(self, *given: Any) -> None:
        *shared, agreement = given
        super().__init__(*shared)
        step, optimizer = self._state.step, self._state.optimizer
        if step is None or not isinstance(optimizer, Joined):
            raise TypeError("the run has no training step of its own")
        self._step, self._optimizer = step, optimizer
        self._agreement: Agreement = agreement
        self._context = Context(self._state)
        for name, part in optimizer.parts.items():
            part.step = functools.partial(self._update, name)  # type: ignore[assignment,method-assign]

    def warm_up(self, split: Split | MappedSplit, poll: Poll) -> None:
        """Do nothing: every sum over ranks is that of the first step."""

    def step(self, micro_batches: list[MicroBatch], batches: Iterator[Batch], poll: Poll) -> Losses:
        """Call the user's step with this rank's part of the batch; return its loss and number of samples."""
        (batch,), state, context = self.loaded(micro_batches, batches, poll), self._state, self._context
        inputs, targets, _ = self._parts(batch)
        state.parallel.zero_grad()
        self._saver.wait_copied()  # a step may change any tensor at any time
        context.samples, context.learning_rate = len(batch), self.learning_rate
        self._numbers.set_learning_rate(context.learning_rate)
        self._shared_state.tick(self._ranks.local_rank, state.progress.cursor.step)
        sys.audit("everstep", "forward", inputs)
        with plugins.user_code_errors(f"training.step: {type(self._step).__name__}.step()"):
            loss: Any = self._step.step((inputs, targets), context)
        context.samples = 0
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            shown = f"a tensor {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise ConfigError(
                f"training.step: {type(self._step).__name__}.step() returns {shown}; it must return the loss of the "
                "batch, a tensor with one number"
            )
        losses = [(loss.detach().reshape(()), len(batch))]
        self._divergence.watch(losses, [])
        if state.ema is not None:
            state.update_averages(state.average_weight)
            sys.audit("everstep", "averaged")
        state.add_losses(losses)
        self._divergence.count_step()
        self._agreement.share_buffers(self._step)  # each rank has computed them from its own samples
        return losses

    @torch.no_grad()
    def _update(self, name: str, closure: None = None) -> None:
        """Take a step of the optimizer of that name: what `optimizer.step()` does in the user's step."""
        if closure is not None:
            raise ConfigError("training.step: optimizer.step(closure) is not supported; call it without arguments")
        part = self._optimizer.parts[name]
        weights = [weight for group in part.param_groups for weight in group["params"]]
        sys.audit("everstep", "backward")
        if self._ranks.world_size > 1:
            self._average(weights)
        norm = None
        if self._run.training.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(weights, self._run.training.clip_norm)
        self._divergence.watch([], weights, norm)
        sys.audit("everstep", "optimizer")
        self._optimizer.step_of(name)
        sys.audit("everstep", "stepped")

    def _average(self, weights: list[nn.Parameter]) -> None:
        """Set the gradients to their means over the samples of all ranks, as one tensor for each type of number."""
        are_used = self._agreement.any_of(*(weight.grad is not None for weight in weights))
        used = [weight for weight, is_used in zip(weights, are_used, strict=True) if is_used]
        share = self._context.samples / self._batches.size
        for dtype in dict.fromkeys(weight.dtype for weight in used):
            same = [weight for weight in used if weight.dtype is dtype]
            flat = torch.cat(
                [(weight.grad if weight.grad is not None else torch.zeros_like(weight)).flatten() for weight in same]
            )
            flat.mul_(share)
            dist.all_reduce(flat)
            for weight, mean in zip(same, flat.split([weight.numel() for weight in same]), strict=True):
                mean = mean.view_as(weight)
                # fused kernels need the strides of the weight
                weight.grad = mean if weight.is_contiguous() else torch.empty_like(weight).copy_(mean)
