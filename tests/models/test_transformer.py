from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from tests.models.contract import ModelContract
from workflow_lib import config
from workflow_lib.data import ModelSpec
from workflow_lib.errors import ConfigError
from workflow_lib.models import transformer


class TestTied(ModelContract):
    name = "transformer"
    params = {"layers": 2, "heads": 2, "width": 32}
    shapes = [(16,), (33,)]
    tasks = ("language",)


class TestUntied(ModelContract):
    name = "transformer"
    params = {"layers": 1, "heads": 1, "width": 24, "dropout": 0.1, "tied": False}
    shapes = [(16,)]
    tasks = ("language",)


@pytest.mark.parametrize(
    ("layers", "heads", "width", "millions"),
    [(2, 2, 64, 0.1), (4, 4, 128, 0.8), (6, 6, 384, 10.6), (12, 12, 768, 85), (12, 13, 832, 100)],
)
def test_the_sizes_are_those_of_the_table(layers: int, heads: int, width: int, millions: float) -> None:
    params = transformer.Params(layers=layers, heads=heads, width=width)
    with torch.device("meta"):
        network = transformer.build(params, ModelSpec((128,), 256, "language"))
    of_tokens = (256 + 128) * width
    count = sum(one.numel() for one in network.parameters()) - of_tokens
    assert count / 1e6 == pytest.approx(millions, abs=0.05 if millions < 20 else 0.5)


def test_first_weights_are_those_of_gpt_2() -> None:
    torch.manual_seed(0)
    network = transformer.build(transformer.Params(layers=8, width=128), ModelSpec((64,), 300, "language"))
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            expected = 0.02 / math.sqrt(16) if name.endswith(("outward.weight", "layers.2.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
        else:
            assert parameter.unique().tolist() == [0.0 if name.endswith("bias") else 1.0], name


def test_a_new_model_knows_nothing() -> None:
    torch.manual_seed(0)
    network = transformer.build(transformer.Params(), ModelSpec((32,), 100, "language"))
    tokens = torch.randint(100, (8, 33))
    loss = torch.nn.functional.cross_entropy(network(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(100), rel=0.02)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_another_task_is_refused(task: str) -> None:
    with pytest.raises(ConfigError, match=f"transformer continues texts; the task of the data is {task}"):
        transformer.build(transformer.Params(), ModelSpec((32,), 10, task))  # type: ignore[arg-type]


def test_heads_that_do_not_divide_the_width_are_refused_when_the_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="5 heads do not divide width=128; allowed: 1, 2, 4, 8"):
        transformer.Params(heads=5)
    path = tmp_path / "mine.yaml"
    path.write_text("name: t\nmodel: {name: transformer, params: {width: 12, heads: 5}}\n")
    with pytest.raises(ConfigError, match=r"model.params.heads: 5 heads do not divide width=12; allowed: 1, 2, 3"):
        config.load([path])


@pytest.mark.parametrize("bad", [{"layers": 0}, {"heads": 0}, {"width": 0}, {"dropout": 1.0}])
def test_settings_out_of_bounds_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        transformer.Params.model_validate(bad)
