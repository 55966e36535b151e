from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from tests.models.contract import ModelContract
from workflow_lib.data import ModelSpec
from workflow_lib.errors import ConfigError
from workflow_lib.models import tabular


class TestMixed(ModelContract):
    name = "tabular"
    params = {"dropout": 0.1}
    shapes = [(5,)]
    categories = (0, 3, 0, 7, 0)


class TestNumbers(ModelContract):
    name = "tabular"
    params = {"hidden": [128], "activation": "gelu"}
    shapes = [(13,), (1,)]


class TestCategories(ModelContract):
    name = "tabular"
    params = {"embedding": 16}
    shapes = [(3,)]
    categories = (40, 30, 20)
    tasks = ("regression", "classification")


def network(categories: tuple[int, ...]) -> torch.nn.Module:
    torch.manual_seed(0)
    return tabular.build(tabular.Params(), ModelSpec((len(categories),), 2, "classification", categories)).eval()


def test_whatever_is_no_category_is_the_same_unknown() -> None:
    codes = torch.tensor([3.0, -1, 99, float("nan"), float("inf"), -float("inf"), 1e30])
    outputs = network((3,))(codes[:, None])
    assert torch.equal(outputs, outputs[:1].expand_as(outputs))
    known = network((3,))(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    assert len(known.unique(dim=0)) == 4


def test_equal_codes_of_two_features_are_different_categories() -> None:
    both = network((3, 3))
    assert not torch.equal(both(torch.tensor([[0.0, 1.0]])), both(torch.tensor([[1.0, 0.0]])))
    embedded = [parameter for name, parameter in both.named_parameters() if name.startswith("embed")]
    assert [tuple(one.shape) for one in embedded] == [(8, 8)]


@pytest.mark.parametrize(("shape", "task"), [((1, 8, 8), "classification"), ((16,), "language")])
def test_what_is_no_table_is_refused(shape: tuple[int, ...], task: str) -> None:
    with pytest.raises(ConfigError, match=r"tabular needs the rows of a table; the data has inputs .* for " + task):
        tabular.build(tabular.Params(), ModelSpec(shape, 10, task))  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [{"embedding": 0}, {"hidden": [0]}, {"dropout": 1.0}, {"activation": "swish"}])
def test_settings_out_of_bounds_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        tabular.Params.model_validate(bad)
