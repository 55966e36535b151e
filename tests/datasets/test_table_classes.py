"""Classes and categories are equal by value; doubtful spellings are rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets.made import (
    IDS,
    opened,
    prepared,
    table,
)
from workflow_lib.data import from_arrays
from workflow_lib.errors import DataError


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_a_class_written_like_a_missing_value_is_rejected_with_advice(tmp_path: Path, name: str) -> None:
    labels = {"y": ["NA", "EU", "AS", "EU"] * 10}
    with pytest.raises(DataError, match="the target is missing; .* if `NA` is a class, remove it from data.params.mis"):
        table(tmp_path, labels, name, categorical=("y",))
    assert table(tmp_path, labels, name, categorical=("y",), missing=("",)).classes == ("AS", "EU", "NA")
    with pytest.raises(DataError, match="the target is missing; remove the row, or fill it$"):
        table(tmp_path, {"y": [None if name == "x.parquet" else "", "EU", "AS", "EU"] * 10}, name)


def test_labels_are_equal_by_value(tmp_path: Path) -> None:
    mixed = ["1", "0", "+1", "0"] * 10 + ["1.0", "0.0", "1.00", "-0"] * 10
    source = table(tmp_path, {"y": mixed})
    assert source.classes == ("0", "1")
    assert source.targets["train"].tolist() == [1, 0] * 40


@pytest.mark.parametrize(
    ("name", "other"),
    [("Yes", "yes"), ("Yes", "YES"), ("01", "1"), ("a  b", "a b"), ("caf\u00e9", "cafe\u0301"), ("A", "\uff21")],
)
def test_labels_that_differ_only_in_spelling_are_rejected(tmp_path: Path, name: str, other: str) -> None:
    labels = [name, "x"] * 10 + [other, "x"] * 10
    with pytest.raises(DataError, match=f"line 22, column `y`: the target `{other}` is `{name}` in line 2: use one sp"):
        table(tmp_path, {"y": labels})
    assert len(table(tmp_path, {"y": labels}, categorical=("y",)).classes) == 3


@pytest.mark.parametrize("text", ["None", "NAN", "#N/A", "NULL", "<NA>", "n/a", "?", "."])
def test_a_label_that_looks_missing_is_rejected(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="looks like a missing value"):
        table(tmp_path, {"y": ["a", "b", text, "a"] * 10})
    assert len(table(tmp_path, {"y": ["a", "b", text, "a"] * 10}, categorical=("y",)).classes) == 3


SAME: dict[str, dict[str, list[Any]]] = {
    "booleans": {"c": [True, False, False, True] * 20, "y": [True, False] * 40},
    "floats as labels": {"c": [1.0, 2.5, 0.1, 1e-7] * 20, "y": [1.0, 0.0] * 40},
    "large numbers": {"c": [2**53 - row % 5 for row in range(80)], "y": IDS * 2},
    "spaces around texts": {"c": [" a", "b ", "a", "b"] * 20, "y": ["p ", " q"] * 40},
    "texts that are numbers": {"c": ["1", "2.50", "3", "4e-1"] * 20, "y": ["1", "0"] * 40},
}


@pytest.mark.parametrize("listed", [(), ("c",)])
@pytest.mark.parametrize("columns", SAME.values(), ids=SAME.keys())
def test_equal_values_in_csv_and_parquet_are_equal_data(
    tmp_path: Path, columns: dict[str, list[Any]], listed: tuple[str, ...]
) -> None:
    csv, parquet = (table(tmp_path, columns, name, categorical=listed) for name in ("x.csv", "x.parquet"))
    assert (csv.features, csv.classes) == (parquet.features, parquet.classes)
    digests = {
        prepared(tmp_path, "table", name, params={"target": "y", "categorical": list(listed)}).digest
        for name in ("x.csv", "x.parquet")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("names", [None, ("a", "b", "c")])
@pytest.mark.parametrize(
    ("labels", "message"),
    [(np.arange(60) % 3 + 1, "labels are 1 to 3; classes are numbered from 0: subtract 1"),
     (np.arange(60) % 3 + 5.0, "labels are 5 to 7; classes are numbered from 0: subtract 5"),
     (np.arange(60) % 2 * 2 - 1, "labels are -1 and 1: give 0 and 1")],
)  # fmt: skip
def test_labels_that_do_not_start_at_0_are_rejected_with_advice(
    tmp_path: Path, labels: np.ndarray, message: str, names: tuple[str, ...] | None
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4), np.uint8)
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels)
    with pytest.raises(DataError, match=message), opened("npz", tmp_path / "x.npz", classes=names):
        pass
    with pytest.raises(DataError, match=message):
        from_arrays(images[:, None], labels, classes=names or "abc")


@pytest.mark.parametrize("key", ["validation", "Test", "valid"])
def test_a_split_with_an_unknown_name_in_npz_is_rejected(tmp_path: Path, key: str) -> None:
    images, labels = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 2
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels, **{f"{key}_images": images})
    with (
        pytest.raises(DataError, match=f"key `{key}_images` belongs to no sp"),
        opened("npz", tmp_path / "x.npz"),
    ):
        pass
