"""Networks that differ in their weights share a graph, with the bytes of an own conversion; unusual ones do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from workflow_lib.export import convert
from workflow_lib.export.shared_graph import converting

INPUTS = {"inputs": torch.zeros(2, 1, 2, 2)}


class Converted(Exception):
    """A network is converted."""


def network(seed: int, scale: float = 0.5) -> nn.Module:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = scale
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

        def forward(self, *given: Tensor) -> Tensor:
            outputs: Tensor = self.layers(given[0] * self.scale)
            return outputs

    torch.manual_seed(seed)
    return Scaled().requires_grad_(False)


def changed(change: Callable[[Any], None]) -> nn.Module:
    found = network(4)
    change(found.layers)
    return found


def fails(*given: Any) -> Any:
    raise Converted


def with_the_bias(other: nn.Module, seed: int) -> nn.Module:
    found: Any = network(seed)
    found.layers[1].bias.copy_(other.layers[1].bias)  # type: ignore[index,union-attr]
    return found


def test_a_network_gets_the_bytes_of_its_own_conversion_after_two_unlike_ones(tmp_path: Path) -> None:
    first = network(1)
    for unproven in (first, with_the_bias(first, 5), network(2)):
        with pytest.raises(Converted):
            converting(tmp_path, "a", fails)(network(3), INPUTS)
        converting(tmp_path, "a")(unproven, INPUTS)
    shared = converting(tmp_path, "a", fails)
    filled = shared(network(3), INPUTS).SerializeToString(deterministic=True)
    assert filled == convert(network(3), INPUTS).SerializeToString(deterministic=True)
    for unlike in (
        network(3, scale=0.25),
        changed(lambda layers: layers[1].bias.zero_()),
        changed(lambda layers: layers[3].weight.fill_(1)),
        changed(lambda layers: layers.register_buffer("table", torch.tensor([2.0]))),
    ):
        with pytest.raises(Converted):
            shared(unlike, INPUTS)
    with pytest.raises(Converted):
        converting(tmp_path, "b", fails)(network(3), INPUTS)
