"""Optimizers, and learning rates as functions of the step.

A learning rate has no state of its own, except reduce-on-plateau, whose two counters are part of a checkpoint.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from workflow_lib.config.sections import Optimizer, Schedule


def build_optimizer(section: Optimizer, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of the section, with torch's fused kernel."""
    _leave_compiler_alone()
    if section.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=section.lr,
            momentum=section.momentum,
            nesterov=section.nesterov,
            weight_decay=section.weight_decay,
            fused=True,
        )
    return torch.optim.AdamW(
        parameters,
        lr=section.lr,
        betas=section.betas,
        eps=section.eps,
        weight_decay=section.weight_decay,
        fused=True,
    )


def bare_step(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """``optimizer.step`` without its wrappers: the same arithmetic, sooner.

    The wrappers serve the profiler, hooks and torch's compiler; they import the compiler, which takes a second, at the
    first call, and cost a small model a tenth of each step.
    """
    step: Any = type(optimizer).step
    while hasattr(step, "__wrapped__"):
        step = step.__wrapped__
    bare: Callable[[], None] = torch.no_grad()(functools.partial(step, optimizer))
    return bare


def _leave_compiler_alone() -> None:
    """The optimizers' bookkeeping methods do not import the compiler either (torch/_compile.py goes by this mark)."""
    for method in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = getattr(getattr(torch.optim.Optimizer, method), "__wrapped__", None)
        if plain is not None:
            plain.__dynamo_disable = plain


@dataclass
class Plateau:
    """Counters of reduce-on-plateau: the factor so far, the best value seen, epochs without a better one."""

    scale: float = 1.0
    best: float | None = None
    bad_epochs: int = 0

    def observe(self, value: float, higher_is_better: bool, factor: float, patience: int) -> None:
        """The scale is multiplied by the factor after more than ``patience`` epochs without improvement."""
        if self.best is None or (value > self.best if higher_is_better else value < self.best):
            self.best, self.bad_epochs = value, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > patience:
            self.scale *= factor
            self.bad_epochs = 0


def learning_rate(
    section: Schedule, base: float, step: int, *, steps_per_epoch: int, epochs: int, plateau: Plateau
) -> float:
    """The learning rate of the step (from 0): linear warm-up, then the schedule over what is left."""
    warmup = round(section.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return base * (step + 1) / warmup
    if section.name == "plateau":
        return base * plateau.scale
    if section.name == "cosine":
        share = (step - warmup) / max(1, epochs * steps_per_epoch - warmup)
        low = section.final_fraction
        return base * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
    return base
