"""Activation checkpointing changes no bit of a training: weights, running means, generators."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from workflow_lib import plugins
from workflow_lib.data import ModelSpec
from workflow_lib.errors import ConfigError
from workflow_lib.runtime.seed import capture_rng, seed_everything
from workflow_lib.training.activation_checkpointing import recompute_blocks

CPU = torch.device("cpu")
IMAGES = ModelSpec((1, 8, 8), 5)
MODELS: dict[str, tuple[dict[str, Any], ModelSpec]] = {
    "mlp": ({"hidden": [9, 8, 7, 6], "dropout": 0.3}, IMAGES),
    "cnn": ({"channels": [3, 4], "dropout": 0.3}, IMAGES),
    "resnet": ({}, IMAGES),
    "transformer": (
        {"width": 16, "layers": 3, "heads": 2, "dropout": 0.2},
        ModelSpec((6,), 7, "language"),
    ),
    "tests.plugins.noisy": ({"tied": True}, IMAGES),
}


def built(name: str) -> nn.Module:
    params, spec = MODELS[name]
    seed_everything(1)
    plugin = plugins.load("models", name)
    model: nn.Module = plugin.build(plugin.Params.model_validate(params), spec)
    return model.train()


def trained(model: nn.Module, spec: ModelSpec, precision: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return weights, buffers, gradients and generators after three steps."""
    seed_everything(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        inputs = torch.randint(spec.outputs, (4, 6)) if spec.task == "language" else torch.randn(4, *spec.input_shape)
        optimizer.zero_grad()
        with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
            loss = model(inputs).float().square().mean()
        loss.backward()
        optimizer.step()
    gradients = {f"gradient of {name}": one.grad for name, one in model.named_parameters() if one.grad is not None}
    return {**model.state_dict(), **gradients, **capture_rng(CPU)}


@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_training_is_the_same_with_its_blocks_recomputed(name: str, precision: torch.dtype | None) -> None:
    plain = built(name)
    other = copy.deepcopy(plain)
    recompute_blocks(other, CPU)
    expected, found = (trained(one, MODELS[name][1], precision) for one in (plain, other))
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


@pytest.mark.parametrize("name", MODELS)
def test_blocks_are_computed_twice_in_training_and_once_without_gradients(name: str) -> None:
    calls: list[int] = []
    model = built(name)
    recompute_blocks(model, CPU)
    last_but_one = [one for one in model.modules() if isinstance(one, nn.Linear | nn.Conv2d)][-2]
    last_but_one.register_forward_hook(lambda *_: calls.append(1))
    trained(model, MODELS[name][1])
    assert len(calls) == 2 * 3
    with torch.inference_mode():
        model.eval()(torch.zeros(2, 6).long() if name == "transformer" else torch.zeros(2, 1, 8, 8))
    assert len(calls) == 2 * 3 + 1


def test_a_model_without_blocks_is_rejected() -> None:
    with pytest.raises(ConfigError, match="training.activation_checkpointing: the model has no blocks"):
        recompute_blocks(nn.Linear(2, 2), CPU)
