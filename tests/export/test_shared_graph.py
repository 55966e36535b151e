"""Networks that differ in their weights share a trace, and their graphs have the bytes of an own conversion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from workflow_lib.errors import UserError
from workflow_lib.export import convert
from workflow_lib.export.shared_graph import converting

INPUTS = {"inputs": torch.zeros(2, 1, 2, 2)}


class Traced(Exception):
    """A network is traced."""


def network(seed: int, scale: float = 0.5) -> Any:
    """Return a network whose export merges a batch norm into a convolution, and computes with weights of attention."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = scale
            self.image = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Flatten(2))
            self.sequence = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))

        def forward(self, *given: Tensor) -> Tensor:
            outputs: Tensor = self.layers(self.sequence(self.image(given[0] * self.scale)))
            return outputs

    torch.manual_seed(seed)
    found = Scaled().requires_grad_(False)
    for tensor in (*found.parameters(), *found.buffers()):
        tensor.copy_(torch.rand(tensor.shape) + 0.5 if tensor.is_floating_point() else torch.tensor(seed))
    return found.eval()


def changed(change: Callable[[Any], None]) -> nn.Module:
    found = network(4)
    change(found)
    return found


def fails(*given: Any) -> Any:
    raise Traced


def with_the_bias(other: Any, seed: int) -> nn.Module:
    found = network(seed)
    found.layers[1].bias.copy_(other.layers[1].bias)
    return found


def no_longer_unlike(network: Any) -> None:
    network.layers[1].bias.zero_()
    network.image[1].weight.fill_(1)
    network.sequence.norm1.weight.copy_(network.sequence.norm2.weight)


def serialized(proto: Any) -> bytes:
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def test_a_network_gets_the_bytes_of_its_own_conversion_after_two_unlike_ones(tmp_path: Path) -> None:
    first = network(1)
    for unproven in (first, with_the_bias(first, 5), network(2)):
        with pytest.raises(Traced):
            converting(tmp_path, "a", fails)(network(3), INPUTS)
        converting(tmp_path, "a")(unproven, INPUTS)
    shared = converting(tmp_path, "a", fails)
    filled = serialized(shared(network(3), INPUTS))
    assert filled == serialized(convert(network(3), INPUTS))
    assert b"BatchNormalization" not in filled
    unusual = changed(no_longer_unlike)
    assert serialized(shared(unusual, INPUTS)) == serialized(convert(unusual, INPUTS))
    for unlike in (
        network(3, scale=0.25),
        changed(lambda network: network.register_buffer("table", torch.tensor([2.0]))),
        changed(lambda network: setattr(network.sequence.norm1, "weight", network.sequence.norm2.weight)),
    ):
        with pytest.raises(Traced):
            shared(unlike, INPUTS)
    with pytest.raises(Traced):
        converting(tmp_path, "b", fails)(network(3), INPUTS)


def test_values_that_become_constants_of_the_graph_must_be_equal(tmp_path: Path) -> None:
    """A weight whose place in the graph is not its own is a constant, too."""

    class Constant(nn.Module):
        def __init__(self, factor: float, table: float, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.layer, self._factor, self.table = nn.Linear(2, 2), factor, torch.tensor([table, 1.0])

        def forward(self, *given: Tensor) -> Tensor:
            outputs: Tensor = self.layer(given[0]) * self.table * self._factor
            return outputs

    for seed in (1, 2):
        converting(tmp_path, "a")(Constant(2.0, 3.0, seed), INPUTS)
    shared = converting(tmp_path, "a", fails)
    assert serialized(shared(Constant(2.0, 3.0, 3), INPUTS)) == serialized(convert(Constant(2.0, 3.0, 3), INPUTS))
    for unlike in (Constant(2.5, 3.0, 4), Constant(2.0, 3.5, 4)):
        with pytest.raises(Traced):
            shared(unlike, INPUTS)


def test_a_model_that_cannot_be_converted_is_named_with_its_line() -> None:
    class Branching(nn.Module):
        def forward(self, *given: Tensor) -> Tensor:
            return given[0] * 2 if float(given[0].sum()) > 0 else given[0]

    line = Branching.forward.__code__.co_firstlineno + 1
    with pytest.raises(UserError, match=rf"test_shared_graph.py, line {line}: Could not .*\. A graph has no branches"):
        convert(Branching(), INPUTS)
