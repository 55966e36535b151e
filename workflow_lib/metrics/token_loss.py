"""Cross-entropy of many tokens, in chunks: only the logits of a chunk, and their gradient, exist in float32.

The whole logits and their gradient keep the type in which the model computes them, bfloat16 with `precision: bf16`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100  # target of a token without a loss, as in torch


def mean_loss(logits: Tensor, targets: Tensor, *, chunk: int, smoothing: float) -> Tensor:
    """Return the mean cross-entropy, float32, of logits [n, classes] and targets [n], ``chunk`` tokens at once."""
    mean: Tensor = _Mean.apply(logits, targets, chunk, smoothing)  # type: ignore[no-untyped-call]
    return mean


def sum_of_losses(logits: Tensor, targets: Tensor, *, chunk: int, smoothing: float = 0.0) -> Tensor:
    """Return the sum of the cross-entropies, without a gradient."""
    with torch.no_grad():
        parts = zip(logits.split(chunk), targets.split(chunk), strict=True)
        losses = [_loss(part.float(), some, smoothing) for part, some in parts]
        return torch.stack(losses).sum()


def _loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    return functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing, ignore_index=IGNORED)


class _Mean(torch.autograd.Function):
    """The gradient is computed in the backward pass, already scaled by the loss scale, so that it fits float16."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, chunk: int, smoothing: float) -> Tensor:
        ctx.save_for_backward(logits, targets)
        ctx.chunk, ctx.smoothing = chunk, smoothing
        return sum_of_losses(logits, targets, chunk=chunk, smoothing=smoothing) / (targets != IGNORED).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits, targets = ctx.saved_tensors
        scale = gradients[0] / (targets != IGNORED).sum()
        found = torch.empty_like(logits)
        parts = zip(*(tensor.split(ctx.chunk) for tensor in (found, logits, targets)), strict=True)
        for place, part, some in parts:
            values = part.detach().float().requires_grad_()
            with torch.enable_grad():
                loss = _loss(values, some, ctx.smoothing)
            place.copy_(torch.autograd.grad(loss, values, scale)[0])
        return found, None, None, None
