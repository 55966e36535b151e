"""Activation checkpointing: what lies inside a block is computed again in the backward pass, and not kept till then.

It costs about a third more time and saves most of the memory of the forward pass. The second computation is the first
one, bit by bit: it draws the same random numbers, of torch, numpy and python, and leaves the buffers (the running means
of a normalisation, say) as the first one left them. So the training is the same with it and without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from workflow_lib.errors import ConfigError
from workflow_lib.runtime.seed import capture_rng, restore_rng

Forward = Callable[..., Any]


def recompute_blocks(model: nn.Module, device: torch.device) -> None:
    """The blocks of the model keep no activations: the items of its module lists, else parts of its sequences.

    Raises ConfigError for a model that has neither.
    """
    blocks = [block for one in _outermost(model, nn.ModuleList) for block in one.children() if _has_weights(block)]
    for block in blocks:
        block.forward = _recomputed(block.forward, block, device)
    sequences = [] if blocks else [one for one in _outermost(model, nn.Sequential) if len(list(one.children())) > 1]
    for sequence in sequences:
        sequence.forward = _in_parts(sequence, device)
    if not blocks and not sequences:
        raise ConfigError(
            "training.activation_checkpointing: the model has no blocks: no torch.nn.ModuleList or torch.nn.Sequential "
            "holds its layers; leave it false"
        )


def _outermost(model: nn.Module, kind: type[nn.Module]) -> Iterator[nn.Module]:
    if isinstance(model, kind):
        yield model
        return
    for child in model.children():
        yield from _outermost(child, kind)


def _has_weights(block: nn.Module) -> bool:
    return next(block.parameters(), None) is not None


def _in_parts(sequence: nn.Module, device: torch.device) -> Forward:
    """The forward pass of a sequence in about as many parts as each has layers, which keeps the least."""
    layers = list(sequence.children())
    length = math.ceil(math.sqrt(len(layers)))
    parts = [nn.Sequential(*layers[start : start + length]) for start in range(0, len(layers), length)]
    forwards = [_recomputed(part.forward, part, device) for part in parts]

    def forward(inputs: Any) -> Any:
        for one in forwards:
            inputs = one(inputs)
        return inputs

    return forward


def _recomputed(forward: Forward, block: nn.Module, device: torch.device) -> Forward:
    def again_in_backward(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(
            forward,
            *arguments,
            use_reentrant=False,
            preserve_rng_state=False,  # only torch's; ours are all
            context_fn=lambda: _contexts(block, device),
            **named,
        )

    return again_in_backward


def _contexts(
    block: nn.Module, device: torch.device
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the first computation, and around the second."""
    drawn: dict[str, torch.Tensor] = {}

    @contextmanager
    def first() -> Iterator[None]:
        drawn.update(capture_rng(device))
        yield

    @contextmanager
    def second() -> Iterator[None]:
        now, buffers = capture_rng(device), [(one, one.detach().clone()) for one in block.buffers()]
        restore_rng(drawn)
        try:
            yield
        finally:
            restore_rng(now)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)

    return first(), second()
