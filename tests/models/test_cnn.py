from __future__ import annotations

import pytest
from pydantic import ValidationError
from torch import nn

from tests.models.contract import ModelContract
from workflow_lib.data import ModelSpec
from workflow_lib.errors import ConfigError
from workflow_lib.models import cnn


class TestDefault(ModelContract):
    name = "cnn"
    shapes = [(1, 8, 8), (1, 28, 28), (3, 28, 28), (3, 9, 31), (1, 4, 4)]


class TestPlain(ModelContract):
    name = "cnn"
    params = {"channels": [8], "batch_norm": False, "dropout": 0.0}


class TestDeep(ModelContract):
    name = "cnn"
    params = {"channels": [8, 16, 16]}


def test_the_layers_are_those_asked_for() -> None:
    network = cnn.build(cnn.Params(channels=(4, 6), batch_norm=False, dropout=0.5), ModelSpec((3, 28, 28), 5))
    assert [(m.in_channels, m.out_channels) for m in network.modules() if isinstance(m, nn.Conv2d)] == [(3, 4), (4, 6)]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [
        ((1, 8, 8), (4, 4, 4, 4), "channels: 4 blocks halve an image of 8x8 to nothing; at most 3 fit"),
        ((1, 28, 3), (4, 4), "channels: 2 blocks halve an image of 28x3 to nothing; at most 1 fit"),
        ((1, 28, 1), (4,), "use another model"),
        ((64,), (4,), r"cnn needs images \(channels, height, width\); the data has inputs \(64,\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_training(
    shape: tuple[int, ...], channels: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        cnn.build(cnn.Params(channels=channels), ModelSpec(shape, 10))


@pytest.mark.parametrize("bad", [{"channels": []}, {"channels": [0]}, {"dropout": -0.1}, {"batch_norm": "maybe"}])
def test_settings_out_of_bounds_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        cnn.Params.model_validate(bad)
