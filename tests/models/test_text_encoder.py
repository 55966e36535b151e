from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from tests.models.contract import ModelContract
from workflow_lib.data import ModelSpec
from workflow_lib.errors import ConfigError
from workflow_lib.models import text_encoder


class TestEncoder(ModelContract):
    name = "text_encoder"
    params = {"layers": 2, "heads": 2, "width": 32}
    shapes = [(16,), (33,)]
    tasks = ("text_classification",)


def built(**params: int) -> torch.nn.Module:
    torch.manual_seed(0)
    spec = ModelSpec((12,), 3, "text_classification", vocabulary=20)
    return text_encoder.build(text_encoder.Params.model_validate(params), spec).eval()


def test_the_filled_end_of_a_text_changes_nothing() -> None:
    network = built()
    text = torch.tensor([[3, 4, 5, 6]])
    filled = torch.cat((text, torch.zeros((1, 8), dtype=torch.int64)), 1)
    torch.testing.assert_close(network(text), network(filled))


def test_every_place_of_a_text_counts() -> None:
    network, text = built(), torch.arange(1, 13)[None]
    for place in range(12):
        other = text.clone()
        other[0, place] = 15
        assert not torch.equal(network(text), network(other))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="3 heads do not divide width=64; allowed: 1, 2, 4, 8, 16, 32, 64"):
        text_encoder.Params(heads=3)


def test_a_language_is_refused() -> None:
    with pytest.raises(ConfigError, match="text_encoder needs texts with one answer each"):
        text_encoder.build(text_encoder.Params(), ModelSpec((12,), 20, "language", vocabulary=20))
