"""A cross-validation: every sample outside of test is validated once, and the test split is the same in every fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.prepared import given
from workflow_lib import config
from workflow_lib.data import Source
from workflow_lib.data.splits import assign
from workflow_lib.errors import ConfigError

CLASSES = ("a", "b", "c")


def source(**fields: Any) -> Source:
    targets = np.repeat([0, 1, 2], [50, 30, 20])
    inputs = np.arange(100, dtype=np.float32)[:, None]
    return given(inputs, targets, classes=CLASSES, **fields)


def fold(source: Source, number: int, **settings: Any) -> dict[str, set[int]]:
    parts = assign(source, config.Data.model_validate({"folds": 5, "fold": number, **settings}))
    return {name: set(part.rows.tolist()) for name, part in parts.items()}


@pytest.mark.parametrize("groups", [None, np.arange(100) // 4])
def test_every_sample_is_validated_once(groups: np.ndarray | None) -> None:
    found = [fold(source(groups=groups), number) for number in range(5)]
    assert len({frozenset(parts["test"]) for parts in found}) == 1
    rest = set(range(100)) - found[0]["test"]
    assert set.union(*(parts["val"] for parts in found)) == rest
    assert sum(len(parts["val"]) for parts in found) == len(rest)
    for parts in found:
        assert parts["train"] == rest - parts["val"]


def test_the_test_split_of_the_data_set_is_kept() -> None:
    own = source()
    own = Source(**{**own.__dict__, "targets": {**own.targets, "test": np.array([0, 1, 2])}})
    parts = assign(own, config.Data(folds=5, fold=1))
    assert (parts["test"].origin, parts["val"].origin) == ("test", "train")
    assert len(parts["val"].rows) == 20
    assert np.bincount(parts["val"].targets).tolist() == [10, 6, 4]


def test_a_validation_split_of_the_data_set_leaves_no_folds() -> None:
    own = source()
    own = Source(**{**own.__dict__, "targets": {**own.targets, "val": np.array([0, 1, 2])}})
    with pytest.raises(ConfigError, match="data.folds: this data set has a validation split of its own"):
        assign(own, config.Data(folds=5, fold=1))


def test_a_class_with_fewer_samples_than_folds_is_in_every_training_split() -> None:
    rare = given(np.arange(100, dtype=np.float32)[:, None], np.repeat([0, 1, 2], [93, 4, 3]), classes=CLASSES)
    found = [fold(rare, number) for number in range(5)]
    for parts in found:
        assert any(row >= 97 for row in parts["train"])
        assert any(93 <= row < 97 for row in parts["train"])
    assert set.union(*(parts["val"] for parts in found)) == set(range(100)) - found[0]["test"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [(None, r"1000 folds of \d+ samples; allowed: at most \d+"), (np.arange(100) // 4, r"1000 folds of \d+ groups of")],
)
def test_more_folds_than_samples_or_groups_are_rejected(groups: np.ndarray | None, message: str) -> None:
    with pytest.raises(ConfigError, match=f"data.folds: {message}"):
        assign(source(groups=groups), config.Data(folds=1000, fold=1))
