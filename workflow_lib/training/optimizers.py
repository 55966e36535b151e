"""Optimizers, and learning rates as functions of the step.

A schedule has no state, except reduce-on-plateau, whose counters are part of a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workflow_lib import plugins
from workflow_lib.config.by_path import factor_problem
from workflow_lib.config.length import Length, warmup_steps
from workflow_lib.config.optimization import OwnOptimizer, OwnSchedule
from workflow_lib.errors import ConfigError
from workflow_lib.runtime.torch_internals import (
    foreach_add_,
    foreach_lerp,
    foreach_lerp_,
    foreach_mul_,
    foreach_sign_,
    unwrap_optimizer_methods,
    unwrapped_step,
)
from workflow_lib.training.parameter_groups import Groups
from workflow_lib.training.selection import Plateau

if TYPE_CHECKING:
    from workflow_lib.config.optimization import Muon as MuonSection
    from workflow_lib.config.optimization import Optimizer, Schedule


def build_optimizer(section: Optimizer, model: nn.Module, parameters: Groups | None = None) -> torch.optim.Optimizer:
    """Return the optimizer of the section, with torch's fused kernel if it has one.

    It trains the parameters or groups of them, or else all parameters of the model that require gradients.
    """
    unwrap_optimizer_methods()
    parameters = parameters or [weight for weight in model.parameters() if weight.requires_grad]
    if isinstance(section, OwnOptimizer):
        return _own(section, parameters)
    if section.name == "lion":
        return Lion(parameters, lr=section.lr, betas=section.betas, weight_decay=section.weight_decay)
    if section.name == "muon":
        return Muon(section, hidden_matrices(model), parameters)
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


def _own(section: OwnOptimizer, parameters: Groups) -> torch.optim.Optimizer:
    """Return the optimizer at the import path. Raises ConfigError if it is no torch optimizer."""
    found = plugins.load_object("optimizer", section.name)
    given = {"lr": section.lr, **({} if section.weight_decay is None else {"weight_decay": section.weight_decay})}
    with plugins.user_code_errors(f"optimizer.name: {section.name}"):
        optimizer = found(parameters, **given, **section.params)
    if not isinstance(optimizer, torch.optim.Optimizer):
        what = f"a {type(optimizer).__name__}; allowed: a torch.optim.Optimizer"
        raise ConfigError(f"optimizer.name: {section.name} gives {what}")
    has_decays = any(isinstance(group, dict) and "weight_decay" in group for group in parameters)
    if has_decays and "weight_decay" not in optimizer.defaults:
        raise ConfigError(f"model.init.weight_decay: {section.name} has no weight_decay; leave the patterns out")
    return optimizer


class Lion(torch.optim.Optimizer):
    """Steps by the sign of a mean of gradient and average. Chen et al., NeurIPS 2023 (arXiv 2302.06675), Program 1."""

    def __init__(self, parameters: Groups, *, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step of every weight that has a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["exp_avg"] = torch.zeros_like(weight)
            averages = [self.state[weight]["exp_avg"] for weight in weights]
            gradients = [weight.grad for weight in weights]
            beta1, beta2 = group["betas"]
            updates = foreach_lerp(averages, gradients, 1 - beta1)
            foreach_sign_(updates)
            foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            foreach_add_(weights, updates, alpha=-group["lr"])
            foreach_lerp_(averages, gradients, 1 - beta2)


class Muon(torch.optim.Optimizer):
    """torch's Muon for the hidden matrices and its AdamW for the rest, as one optimizer.

    The steps of the matrices are scaled to the size of AdamW's, so that both use one learning rate and weight decay.
    Source: Liu et al., Muon is Scalable for LLM Training (arXiv 2502.16982), section 2.2.
    """

    def __init__(self, section: MuonSection, matrices: list[nn.Parameter], parameters: Groups) -> None:
        hidden = {id(matrix) for matrix in matrices}
        inside, others = _split(parameters, lambda weight: id(weight) in hidden)
        shared: dict[str, Any] = {"lr": section.lr, "weight_decay": section.weight_decay}
        parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(inside, momentum=section.momentum, adjust_lr_fn="match_rms_adamw", **shared)
        ]
        if others:
            parts.append(torch.optim.AdamW(others, betas=section.betas, eps=section.eps, fused=True, **shared))
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = [(part, len(part.param_groups), unwrapped_step(part)) for part in parts]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step of every weight that has a gradient."""
        groups = iter(self.param_groups)
        for part, count, step in self._parts:
            part.param_groups, part.state = [*islice(groups, count)], self.state  # both are new objects after a load
            step()


def _split(parameters: Groups, is_inside: Callable[[nn.Parameter], bool]) -> tuple[Groups, Groups]:
    """Return the groups of the parameters inside and of the others, without empty groups."""
    groups = [part for part in parameters if isinstance(part, dict)] or [{"params": parameters}]
    sides = [
        [{**group, "params": [weight for weight in group["params"] if is_inside(weight) == side]} for group in groups]
        for side in (True, False)
    ]
    inside, others = ([group for group in side if group["params"]] for side in sides)
    return inside, others


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained matrices except those of embeddings and of a linear layer at the end of the model."""
    end = [module for module in model.modules() if list(module.parameters(recurse=False))][-1:]
    last = [module.weight for module in end if isinstance(module, nn.Linear)]
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    others = {id(weight) for weight in (*last, *tables)}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    found = [weight for weight in trained if weight.ndim == 2 and id(weight) not in others]
    if not found:
        raise ConfigError(
            "optimizer.name: muon is for the matrices of hidden layers, and this model has none (convolutions, "
            "embeddings and the last layer do not count); use adamw"
        )
    return found


def learning_rate(section: Schedule, base: float, step: int, *, length: Length, plateau: Plateau) -> float:
    """Return the learning rate of a step, counted from 0: a linear warm-up, then the schedule over the other steps."""
    warmup = warmup_steps(section, length.steps_per_epoch)
    total = max(1, length.total - warmup)
    if isinstance(section, OwnSchedule):
        factor = own_factor(section, max(0, step - warmup), total)
        return base * factor * min(1.0, (step + 1) / max(1, warmup))
    first = section.start_fraction if section.name == "one_cycle" else 1.0
    if step < warmup:
        return base * first * (step + 1) / warmup
    share = min(1.0, (step - warmup) / total)
    if section.name == "plateau":
        return base * plateau.scale
    if section.name == "step":
        every = section.every_steps or (section.every_epochs or 1) * length.steps_per_epoch
        return base * section.factor ** (step // every)
    if section.name == "linear":
        return base * (1 - share * (1 - section.final_fraction))
    if section.name == "cosine":
        return base * _half_cosine(1.0, section.final_fraction, share)
    if section.name == "one_cycle":
        rise = section.rise_fraction
        if share < rise:
            return base * _half_cosine(first, 1.0, share / rise)
        return base * _half_cosine(1.0, section.final_fraction, (share - rise) / (1 - rise))
    return base


def own_factor(section: OwnSchedule, step: int, total_steps: int) -> float:
    """Return the factor of the user's schedule. Raises ConfigError if it is not a finite number of at least 0."""
    function = plugins.load_object("schedule", section.name)
    with plugins.user_code_errors(f"schedule.name: {section.name}"):
        factor = function(step, total_steps, **section.params)
    if what := factor_problem(factor):
        raise ConfigError(f"schedule.name: {section.name} returns {what} for step {step} of {total_steps}")
    return float(factor)


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
