"""A user's loss, optimizer and schedule, found by their import paths, and some that are rejected."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


def smoothed(outputs: torch.Tensor, targets: torch.Tensor, *, power: float = 1.0, noise: float = 0.0) -> torch.Tensor:
    """Return a loss of each sample that draws from torch's generator."""
    each = functional.cross_entropy(outputs, targets, reduction="none").pow(power)
    return each * (1 + noise * torch.rand_like(each))


def of_batch(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return a loss of the whole batch, which is no mean over its samples."""
    return functional.cross_entropy(outputs, targets).square() + outputs.mean(0).std()


class Weighted(nn.Module):
    """A module with a constant buffer."""

    weights: torch.Tensor

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(weight))

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.weights * functional.cross_entropy(outputs, targets)


class Learned(nn.Module):
    """A loss with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))


class Counting(Weighted):
    """A loss that changes its buffer."""

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.weights += 1
        return super().forward(outputs, targets)


class Tired:
    """A loss that counts its calls."""

    calls = 0

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return functional.cross_entropy(outputs, targets) * (1 + 0.01 * self.calls)


def a_word(outputs: torch.Tensor, targets: torch.Tensor) -> str:
    return "loss"


def of_three(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.flatten()[:3]


class Heavy(torch.optim.Optimizer):
    """Momentum in float64, with the number of steps and a trend as Python values."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0, betas: tuple[float, ...] = (0.9,)):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (beta,) = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state.update(steps=0, trend=[0.0, None], mean=torch.zeros_like(weight, dtype=torch.float64))
                state["steps"] += 1
                state["trend"] = [0.5 * state["trend"][0] + state["steps"] / 3, "up"]
                state["mean"].lerp_(weight.grad.double(), 1 - beta)
                size = group["lr"] * (1 + 0.01 * state["trend"][0])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_((size * state["mean"]).to(weight.dtype))


class Forgetful(Heavy):
    """An optimizer that keeps a count outside of its state."""

    steps = 0

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.steps += 1
        for group in self.param_groups:
            group["lr"] *= 1 + 0.01 * self.steps
        super().step()


class Nested(Heavy):
    """An optimizer whose state has a tensor in a list."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        super().step()
        for named in self.state.values():
            named["all"] = [named["mean"]]


def dull(params: Any, lr: float) -> dict[str, float]:
    """Return no optimizer."""
    return {"lr": lr}


def noam(step: int, total_steps: int, *, rise: float = 0.1) -> float:
    """Return the factor of a rise and an inverse square root."""
    peak = max(1.0, rise * total_steps)
    return float(min((step + 1) / peak, (peak / (step + 1)) ** 0.5))


def downhill(step: int, total_steps: int) -> float:
    """Return a factor that is negative in the end."""
    return 1 - 2 * step / total_steps


class Scheduler:
    """A schedule with state."""


def spread(outputs: torch.Tensor, targets: torch.Tensor, *, power: float = 1.0) -> torch.Tensor:
    """A metric over the whole split: no mean over samples."""
    return outputs.std(0).pow(power).mean() + targets.double().std()


class Streak:
    """A metric that depends on the order of the samples: the longest run of correct predictions."""

    higher_is_better = True

    def __init__(self, num_classes: int, least: int = 0) -> None:
        self.current, self.longest, self.seen = least, least, torch.zeros(num_classes, dtype=torch.int64)

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        for is_right in (outputs.argmax(1) == targets).tolist():
            self.current = self.current + 1 if is_right else 0
            self.longest = max(self.longest, self.current)
        self.seen += torch.bincount(targets, minlength=len(self.seen))

    def compute(self) -> float:
        return self.longest + self.seen.sum().item() / 1000

    def state_dict(self) -> dict[str, Any]:
        return {"counts": [self.current, self.longest], "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.current, self.longest = state["counts"]
        self.seen = state["seen"]


class Leaky(Streak):
    """A metric that counts its batches outside of its state."""

    batches = 0

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.batches += 1
        super().update(outputs, targets)

    def compute(self) -> float:
        return float(self.batches)


class Table(Streak):
    """A metric whose value is no number."""

    def compute(self) -> Any:
        return {"longest": self.longest}


class Unsaved(Streak):
    """A metric whose state has a set."""

    def state_dict(self) -> dict[str, Any]:
        return {"counts": {1, 2}}


class Mute:
    """A metric without a direction and a state."""

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        pass

    def compute(self) -> float:
        return 0.0


class wrapped:  # noqa: N801
    """A metric of torchmetrics around another one."""

    update = compute = state_dict = load_state_dict = Mute.update

    def __new__(cls) -> Any:
        from torchmetrics.classification import MulticlassAccuracy
        from torchmetrics.wrappers import MinMaxMetric

        return MinMaxMetric(MulticlassAccuracy(6))
