"""Rare classes are dropped or merged, and train has every class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets.made import (
    inputs_of,
)
from workflow_lib.data import SPLITS, prepare
from workflow_lib.errors import DataError


def few(folder: Path) -> dict[str, Any]:
    """Write a table with 4 classes, of which one has a single sample and one has two; return its settings."""
    labels = ["a"] * 60 + ["b"] * 40 + ["c"] * 2 + ["d"]
    values = np.random.default_rng(0).normal(size=(len(labels), 2)).round(3).tolist()
    lines = [f"{x},{z},{label}" for (x, z), label in zip(values, labels, strict=True)]
    (folder / "x.csv").write_text("\n".join(["x,z,y", *lines]) + "\n")
    return {"name": "table", "params": {"path": "x.csv", "target": "y"}}


@pytest.mark.parametrize("seed", range(6))
def test_train_has_every_class_and_a_split_without_one_is_reported(
    tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = prepare(few(tmp_path) | {"split_seed": seed}, tmp_path, tmp_path / "work")
    assert all(manifest.splits["train"].per_class)
    assert sum(split.samples for split in manifest.splits.values()) == 103
    logged = [message for message in caplog.messages if "has no sample of class" in message]
    assert len(logged) == 2
    assert "`d`" in logged[0]
    assert "the val split" in logged[0]
    assert "the test split" in logged[1]


def test_rare_classes_are_dropped_or_merged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = few(tmp_path) | {"min_class_count": 10}
    dropped = prepare(settings, tmp_path, tmp_path / "work")
    assert dropped.classes == ("a", "b")
    assert sum(split.samples for split in dropped.splits.values()) == 100
    assert "classes with fewer than 10 samples are left out (c: 2, d: 1)" in caplog.text
    merged = prepare(settings | {"rare_classes": "merge"}, tmp_path, tmp_path / "work")
    assert merged.classes == ("a", "b", "other")
    assert sum(split.samples for split in merged.splits.values()) == 103
    assert sum(split.per_class[2] for split in merged.splits.values()) == 3
    with pytest.raises(DataError, match="data.min_class_count: 50 leaves 1 class"):
        prepare(settings | {"min_class_count": 50}, tmp_path, tmp_path / "work")


def test_a_dropped_class_takes_its_own_rows_with_it(tmp_path: Path) -> None:
    """Also if categories are learned again from the rows that remain in train."""
    labels = ["a", "b"] * 40 + ["c"] * 3
    lines = [f"{row},{'x' if label == 'c' else label}{row % 3},{label}" for row, label in enumerate(labels)]
    (tmp_path / "x.csv").write_text("\n".join(["n,k,y", *lines]) + "\n")
    settings = {"name": "table", "params": {"path": "x.csv", "target": "y"}, "min_class_count": 5}
    manifest = prepare(settings, tmp_path, tmp_path / "work")
    categories = manifest.features[1].categories
    assert not [name for name in categories if name.startswith("x")]
    for split in SPLITS:
        for n, code in inputs_of(manifest, tmp_path, split).tolist():
            row = int(n)
            assert row < 80
            assert categories[int(code)] == f"{labels[row]}{row % 3}"
