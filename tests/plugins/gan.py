"""A small GAN: a generator of images from noise, and a critic with a gradient penalty (Gulrajani et al., 2017).

The generator is the model of the run; `training.ema_decay` averages its weights. The critic is trained in every step,
the generator in every `critic_steps`-th.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workflow_lib import Section, TrainingStep

if TYPE_CHECKING:
    from workflow_lib import Context, ModelSpec, Setup


class Params(Section):
    """Settings of the generator."""

    noise: int = 16
    hidden: int = 64


def build(params: Params, spec: ModelSpec) -> nn.Module:
    """Return the generator: noise [B, noise] to images."""
    shape = spec.input_shape
    return nn.Sequential(
        nn.Linear(params.noise, params.hidden),
        nn.BatchNorm1d(params.hidden),
        nn.ReLU(),
        nn.Linear(params.hidden, math.prod(shape)),
        nn.Unflatten(1, shape),
    )


class Step(TrainingStep):
    """The critic learns to tell images from generated ones, and the generator to be taken for images."""

    logs = ("critic", "penalty", "generator")
    metrics = {"loss": "lower", "distance": "lower"}

    def __init__(self, *, noise: int = 16, penalty: float = 10.0, critic_steps: int = 2, lr: float = 1e-3) -> None:
        super().__init__()
        self.noise, self.penalty, self.critic_steps, self.lr = noise, penalty, critic_steps, lr

    def example_inputs(self, spec: ModelSpec, samples: int) -> Tensor:
        return torch.randn(samples, self.noise)

    def build(self, setup: Setup) -> None:
        size = math.prod(setup.spec.input_shape)
        self.critic = nn.Sequential(nn.Flatten(), nn.Linear(size, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
        self.register_buffer("fixed_noise", torch.randn(64, self.noise))
        self.values["generator_steps"] = 0

    def optimizers(self, setup: Setup) -> dict[str, Any]:
        betas = (0.0, 0.9)
        return {
            "generator": setup.optimizer(self.model, betas=betas),
            "critic": torch.optim.Adam(self.critic.parameters(), lr=self.lr, betas=betas),
        }

    def step(self, batch: tuple[Tensor, Tensor], context: Context) -> Tensor:
        images, _ = batch
        with context.autocast():
            generated = self.model(torch.randn(len(images), self.noise, device=images.device))
            distance = self.critic(generated.detach()).float().mean() - self.critic(images).float().mean()
        penalty = self.gradient_penalty(images, generated.detach())
        (distance + self.penalty * penalty).backward()
        context.optimizers["critic"].step()
        context.log("critic", distance)
        context.log("penalty", penalty)
        if context.step % self.critic_steps == 0:
            self.values["generator_steps"] += 1
            with context.autocast():
                loss = -self.critic(generated).float().mean()
            context.optimizers["generator"].zero_grad()
            loss.backward()
            context.optimizers["generator"].step()
            context.log("generator", loss)
        self.critic.zero_grad()
        return distance

    def gradient_penalty(self, images: Tensor, generated: Tensor) -> Tensor:
        """Return how far the norm of the critic's gradient is from 1, between images and generated ones."""
        share = torch.rand(len(images), *[1] * (images.dim() - 1), device=images.device)
        between = (share * images + (1 - share) * generated.float()).requires_grad_()
        (gradient,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()

    def validate(self, batch: tuple[Tensor, Tensor], context: Context) -> Mapping[str, Tensor]:
        images, _ = batch
        generated = self.model(self.fixed_noise)
        distance = self.critic(generated).mean() - self.critic(images).mean()
        return {"loss": (generated.mean(0) - images.mean(0)).square().mean(), "distance": distance.abs()}
