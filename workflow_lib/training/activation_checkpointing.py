"""Activation checkpointing: the activations inside a block are not stored, but computed again in the backward pass.

It costs about a third more time and saves most of the memory of the forward pass. The second computation gives the
same bits: it draws the same random numbers from torch, NumPy and Python, and leaves the buffers, such as the running
means of a normalisation, as they were after the first. So the training is the same with and without it.
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
    """Make the blocks of the model recompute their activations. Raises ConfigError if the model has no blocks.

    Blocks are the members of its outermost ModuleLists or, if there are none, segments of its outermost Sequentials.
    """
    lists = _outermost(model, nn.ModuleList)
    blocks = [block for module_list in lists for block in module_list.children() if _has_weights(block)]
    for block in blocks:
        block.forward = _recomputed(block.forward, block, device)
    found = [] if blocks else _outermost(model, nn.Sequential)
    sequences = [sequence for sequence in found if len(list(sequence.children())) > 1]
    for sequence in sequences:
        sequence.forward = _in_segments(sequence, device)
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


def _in_segments(sequence: nn.Module, device: torch.device) -> Forward:
    """Return the forward pass in about sqrt(n) segments of sqrt(n) layers, which needs the least memory."""
    layers = list(sequence.children())
    length = math.ceil(math.sqrt(len(layers)))
    segments = [nn.Sequential(*layers[start : start + length]) for start in range(0, len(layers), length)]
    forwards = [_recomputed(segment.forward, segment, device) for segment in segments]

    def forward(inputs: Any) -> Any:
        for segment in forwards:
            inputs = segment(inputs)
        return inputs

    return forward


def _recomputed(forward: Forward, block: nn.Module, device: torch.device) -> Forward:
    def recomputed(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(
            forward,
            *arguments,
            use_reentrant=False,
            preserve_rng_state=False,  # covers only torch's generators; the contexts below restore all
            context_fn=lambda: _contexts(block, device),
            **named,
        )

    return recomputed


def _contexts(
    block: nn.Module, device: torch.device
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first computation and of the second."""
    drawn: dict[str, torch.Tensor] = {}

    @contextmanager
    def first() -> Iterator[None]:
        drawn.update(capture_rng(device))
        yield

    @contextmanager
    def second() -> Iterator[None]:
        now, buffers = capture_rng(device), [(buffer, buffer.detach().clone()) for buffer in block.buffers()]
        restore_rng(drawn)
        try:
            yield
        finally:
            restore_rng(now)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)

    return first(), second()
