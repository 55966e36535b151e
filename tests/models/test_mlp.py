from __future__ import annotations

import pytest
from pydantic import ValidationError
from torch import nn

from tests.models.contract import ModelContract
from workflow_lib.data import ModelSpec
from workflow_lib.errors import ConfigError
from workflow_lib.models import mlp


class TestDefault(ModelContract):
    name = "mlp"
    shapes = [(1, 8, 8), (3, 28, 28), (30,), (2, 3, 4, 5)]


class TestDeep(ModelContract):
    name = "mlp"
    params = {"hidden": [64, 32, 32], "activation": "gelu", "dropout": 0.1}


class TestLinear(ModelContract):
    name = "mlp"
    params = {"hidden": []}


def test_the_layers_are_those_asked_for() -> None:
    network = mlp.build(mlp.Params(hidden=(5, 3), activation="tanh", dropout=0.5), ModelSpec((1, 8, 8), 4))
    assert [(m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)] == [
        (64, 5),
        (5, 3),
        (3, 4),
    ]
    assert sum(isinstance(m, nn.Tanh) for m in network.modules()) == 2
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]


def test_a_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="mlp gives one answer a sample, and a text needs one a token"):
        mlp.build(mlp.Params(), ModelSpec((16,), 10, "language"))


@pytest.mark.parametrize("bad", [{"hidden": [0]}, {"dropout": 1.0}, {"activation": "swish"}, {"hidden": 128}])
def test_settings_out_of_bounds_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        mlp.Params.model_validate(bad)
