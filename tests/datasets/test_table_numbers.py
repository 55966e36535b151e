"""Numbers of a table and of images are kept exactly, or rejected; float32 merges nothing silently."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest

from tests.datasets.made import (
    IDS,
    opened,
    table,
)
from workflow_lib import config
from workflow_lib.data import from_arrays
from workflow_lib.data.splits import assign
from workflow_lib.errors import DataError


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_whole_numbers_of_any_size_can_be_names(tmp_path: Path, name: str) -> None:
    source = table(tmp_path, {"id": IDS}, name, categorical=("id",))
    assert source.features[0].categories[2:] == tuple(str(2**60 + number) for number in range(4))
    source = table(tmp_path, {"y": IDS}, name)
    assert source.classes == tuple(str(2**60 + number) for number in range(4))


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_whole_number_beyond_float64_is_rejected_with_its_row(tmp_path: Path, name: str, task: str) -> None:
    with pytest.raises(
        DataError, match=f"(line 3|row 1), column `id`: float64 cannot represent the whole number {2**60 + 1}"
    ):
        table(tmp_path, {"id": IDS, "y": [row % 2 for row in range(40)]}, name, task=task)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
@pytest.mark.parametrize("start", [1_700_000_000_000, -1_700_000_000_000, 20_260_101, 10**15, 1_700_000_000.25])
def test_numbers_far_from_zero_stay_different(tmp_path: Path, name: str, start: float) -> None:
    """Adding a constant to a column does not change the inputs of a model."""
    offsets = np.random.default_rng(0).permutation(400)
    seen = []
    for number, begin in enumerate((0, start)):
        folder = tmp_path / str(number)
        folder.mkdir()
        table(folder, {"t": [begin + value for value in offsets.tolist()]}, name)
        with opened("table", folder / name, target="y") as source:
            seen.append(source.read("train", np.arange(400))[:, 0])
        assert (source.features[0].centre == 0) == (begin == 0)
    assert len(np.unique(seen[1])) == 400
    np.testing.assert_allclose(seen[1] - seen[1].mean(), seen[0] - seen[0].mean(), atol=0.01)


def test_numbers_that_float32_merges_are_rejected(tmp_path: Path) -> None:
    """Time stamps in which 0 means a missing value have no useful centre."""
    times = [0, *(1_700_000_000_000 + row for row in range(39))]
    with pytest.raises(DataError, match=r"column `t`: 1700000000000.0 and 1700000000001.0 are equal in float32"):
        table(tmp_path, {"t": times})
    assert table(tmp_path, {"t": times}, features=("x",)).features[0].name == "x"


def test_targets_that_float32_merges_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the targets 1700000000.0 and 1700000005.0 are equal in float32"):
        table(tmp_path, {"y": [1_700_000_000 + 5 * row for row in range(40)]}, task="regression")
    source = from_arrays(np.zeros((4, 1), np.float32), np.arange(4) + 2**40)
    with pytest.raises(DataError, match="the targets 1099511627776 and 1099511627777 of `train` are equal in float32"):
        assign(source, config.Data())


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint32, np.float64])
def test_images_whose_values_float32_merges_are_rejected(tmp_path: Path, kind: type) -> None:
    images = (2**24 + np.arange(60 * 16).reshape(60, 4, 4)).astype(kind)
    np.savez(
        tmp_path / "x.npz", train_images=images * (1 if kind != np.float64 else 64), train_labels=np.arange(60) % 2
    )
    if kind is not np.float64:
        with pytest.raises(DataError, match="`train_images`: 16777216 and 16777217 are equal in float32"):
            with opened("npz", tmp_path / "x.npz"):
                pass
    np.savez(tmp_path / "x.npz", train_images=1e12 + images.astype(float), train_labels=np.arange(60) % 2)
    with pytest.raises(DataError, match="`train_images`: .* are equal in float32"), opened("npz", tmp_path / "x.npz"):
        pass


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_numbers_near_zero_are_kept_and_reported(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        table(tmp_path, {"x": [10.0**-row for row in range(40)]}, name)
    assert re.search(r"column `x`: 1e-38 in (line 40|row 38): numbers closer to 0", caplog.text)
    with opened("table", tmp_path / name, target="y") as source:
        assert source.read("train", np.array([39]))[0, 0] == np.float32(1e-39) > 0
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        targets = {"x": [*range(40)], "t": [10.0**-row for row in range(40)]}
        table(tmp_path, targets, name, target="t", task="regression", features=("x",))
        assert "column `t`: 1e-38 in" in caplog.text
        caplog.clear()
        table(tmp_path, {"x": [10.0**-row for row in range(37)]}, name)
    assert "closer to 0" not in caplog.text


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
@pytest.mark.parametrize("text", ["1e-400", "-0.5e-330", "0." + "0" * 350 + "1"])
def test_a_number_that_float64_rounds_to_zero_is_rejected(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(DataError, match=f"(line 4|row 2), column `x`: {text} is too close to 0"):
        table(tmp_path, {"x": ["1", "0e-5", text, "0.000", *map(str, range(36))]}, name)


def test_a_whole_number_beyond_float64_is_rejected_in_any_notation(tmp_path: Path) -> None:
    for text in ("9007199254740993", "9007199254740993.0", "+9007199254740993.00", "-9007199254740993"):
        with pytest.raises(DataError, match=f"float64 cannot represent the whole number {re.escape(text)} "):
            table(tmp_path, {"n": ["1", text] * 20})
    table(tmp_path, {"n": ["9007199254740992", "9007199254740994"] * 20})
