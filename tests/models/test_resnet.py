from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.models.contract import ModelContract
from workflow_lib.data import ModelSpec
from workflow_lib.errors import ConfigError
from workflow_lib.models import resnet


class TestSmall(ModelContract):
    name = "resnet"
    params = {"width": 8}
    shapes = [(1, 8, 8), (3, 28, 28), (3, 9, 31), (2, 3, 3)]


class TestGroups(ModelContract):
    name = "resnet"
    params = {"width": 6, "norm": "group", "dropout": 0.1}
    shapes = [(1, 8, 8), (3, 1, 1)]


class TestEighteen(ModelContract):
    name = "resnet"
    params = {"size": "18", "width": 8}
    shapes = [(1, 16, 16), (3, 70, 66)]


@pytest.mark.parametrize(
    ("size", "convolutions", "parameters"), [("small", 15, 696_618), ("18", 20, 11_173_962)], ids=["small", "18"]
)
def test_the_sizes_are_those_of_the_table(size: str, convolutions: int, parameters: int) -> None:
    with torch.device("meta"):
        network = resnet.build(resnet.Params.model_validate({"size": size}), ModelSpec((3, 32, 32), 10))
    assert sum(isinstance(one, nn.Conv2d) for one in network.modules()) == convolutions
    assert sum(one.numel() for one in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("stem", "pixels", "left"), [("auto", 64, 8), ("auto", 65, 3), ("small", 96, 12), ("large", 32, 1)]
)
def test_large_images_are_reduced_first(stem: str, pixels: int, left: int) -> None:
    params = resnet.Params.model_validate({"size": "18", "width": 1, "stem": stem})
    network = resnet.build(params, ModelSpec((1, pixels, pixels), 2))
    seen: list[torch.Size] = []
    network.get_submodule("blocks")[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    network(torch.zeros(2, 1, pixels, pixels))
    assert seen == [(2, 8, left, left)]


def test_groups_of_channels_are_normalised_without_the_batch() -> None:
    network = resnet.build(resnet.Params(norm="group"), ModelSpec((3, 32, 32), 10))
    assert not any(isinstance(one, nn.BatchNorm2d) for one in network.modules())
    assert not list(network.buffers())


@pytest.mark.parametrize("shape", [(64,), (3, 4, 5, 6)])
def test_what_is_no_image_is_refused_before_training(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"resnet needs images \(channels, height, width\); the data has inputs"):
        resnet.build(resnet.Params(), ModelSpec(shape, 10))


@pytest.mark.parametrize("bad", [{"size": "34"}, {"width": 0}, {"norm": "layer"}, {"stem": "none"}, {"dropout": 1}])
def test_settings_out_of_bounds_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        resnet.Params.model_validate(bad)
