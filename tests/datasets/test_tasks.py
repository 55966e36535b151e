"""Data of each task is prepared and loaded with the types and shapes of the task."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.prepared import (
    FEATURES,
    NUMBERS,
    TABLE,
    TOKENS,
    Prepare,
    language,
    prepared,
    regression,
    shapes,
    table,
)
from workflow_lib import data
from workflow_lib.data import SPLITS, Manifest, ModelSpec, Source
from workflow_lib.data.splits import assign, stratified_split
from workflow_lib.errors import DataError

__all__ = ["prepared"]


def rows_of(manifest: Manifest, source: Source) -> dict[str, np.ndarray]:
    from workflow_lib import config

    return {name: part.rows for name, part in assign(source, config.Data.model_validate(manifest.data)).items()}


@pytest.mark.parametrize("kind", [np.uint8, np.int32])
def test_tokens_are_loaded_unchanged(kind: type, prepared: Prepare, tmp_path: Path) -> None:
    source = language(TOKENS.astype(kind))
    manifest = prepared(source)
    assert manifest.spec == ModelSpec((7,), 5, "language", vocabulary=5)
    for name, rows in rows_of(manifest, source).items():
        split = data.load_split(manifest, name, tmp_path / "work")
        inputs, targets = split.batch(torch.arange(len(split)))
        assert inputs.dtype == torch.int64
        assert inputs.tolist() == TOKENS[rows].tolist()
        assert targets.shape == split.targets.shape == (len(rows), 0)


def test_numbers_to_predict_are_standardised_by_those_of_train(prepared: Prepare, tmp_path: Path) -> None:
    source = regression()
    manifest = prepared(source)
    assert shapes(manifest) == ModelSpec((1,), 2, "regression")
    rows = rows_of(manifest, source)
    np.testing.assert_allclose(manifest.target_mean, NUMBERS[rows["train"]].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(manifest.target_std, NUMBERS[rows["train"]].std(axis=0), rtol=1e-5)
    for name in SPLITS:
        targets = data.load_split(manifest, name, tmp_path / "work").targets
        assert targets.dtype == torch.float32
        back = targets.numpy() * manifest.target_std + manifest.target_mean
        np.testing.assert_allclose(back, NUMBERS[rows[name]], rtol=1e-5)


def test_a_single_number_to_predict_is_a_column(prepared: Prepare, tmp_path: Path) -> None:
    manifest = prepared(regression(NUMBERS[:, 0]))
    assert manifest.spec.outputs == 1
    assert data.load_split(manifest, "val", tmp_path / "work").targets.shape == (9, 1)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            regression(NUMBERS[:, :0]),
            r"the targets of `train` are float32 of shape \(60, 0\); .* or \(n, outputs\)",
        ),
        (
            regression(NUMBERS.astype(str)),
            r"the targets of `train` are <U32 of shape \(60, 2\); allowed: an array",
        ),
        (regression(NUMBERS[None]), r"the targets of `train` are float32 of shape \(1, 60, 2\); allowed"),
        (regression(NUMBERS[:0]), "the train split has no sample"),
        (
            regression(NUMBERS.astype(float) * 1e300),
            "target in row 0 of `train` is .*; every sample needs a finite",
        ),
        (
            language(TOKENS[:, :0]),
            r"gave int32 of shape \(1, 0\); allowed: uint8 or int32 of shape \(1, context",
        ),
    ],
)
def test_arrays_of_other_shapes_and_types_are_rejected(source: Source, said: str, prepared: Prepare) -> None:
    with pytest.raises(DataError, match=said):
        prepared(source)


@pytest.mark.parametrize("source", [language(), regression()], ids=["language", "regression"])
def test_without_classes_a_split_is_drawn_from_all_rows(source: Source, prepared: Prepare) -> None:
    rows = rows_of(prepared(source), source)
    assert [len(rows[name]) for name in SPLITS] == [39, 9, 12]
    drawn = stratified_split(np.zeros(60, np.int64), [0.15, 0.2], 0)
    assert [part.tolist() for part in drawn] == [rows[name].tolist() for name in SPLITS]


def test_a_missing_number_is_the_mean_and_a_category_its_number(prepared: Prepare, tmp_path: Path) -> None:
    source = table()
    manifest = prepared(source)
    assert shapes(manifest) == ModelSpec((3,), 2, categories=(0, 3, 0))
    assert (manifest.mean[1], manifest.std[1]) == (0.0, 1.0)
    assert manifest.features == FEATURES
    for name, rows in rows_of(manifest, source).items():
        inputs = data.load_split(manifest, name, tmp_path / "work").inputs.numpy()
        assert inputs[:, 1].tolist() == TABLE[rows, 1].tolist()
        is_missing = np.isnan(TABLE[rows, 0])
        assert set(inputs[is_missing, 0]) == {0.0}
        expected = (TABLE[rows, 0] - manifest.mean[0]) / manifest.std[0]
        np.testing.assert_allclose(inputs[~is_missing, 0], expected[~is_missing], atol=1e-5)
    train = TABLE[rows_of(manifest, source)["train"], 0]
    np.testing.assert_allclose(manifest.mean[0], np.nanmean(train), rtol=1e-6)
    np.testing.assert_allclose(manifest.std[0], np.nanstd(train), rtol=1e-6)


def test_a_column_without_any_number_becomes_zeros(prepared: Prepare, tmp_path: Path) -> None:
    empty = TABLE.copy()
    empty[:, 2] = np.nan
    manifest = prepared(table(empty))
    assert (manifest.mean[2], manifest.std[2]) == (0.0, 1.0)
    assert data.load_split(manifest, "train", tmp_path / "work").inputs[:, 2].unique().tolist() == [0.0]


def put(array: np.ndarray, row: int, column: int, value: float) -> np.ndarray:
    changed = array.copy()
    changed[row, column] = value
    return changed


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (language(put(TOKENS, 7, 2, 5)), "input in row 7 of `train` has tokens that are not in the vocabulary"),
        (language(put(TOKENS, 7, 2, -1)), "input in row 7 of `train` has tokens that are not in the vocabulary"),
        (language(TOKENS.astype(np.float32)), "gave float32 .*allowed: uint8 or int32 of shape .*context"),
        (regression(put(NUMBERS, 7, 1, np.nan)), r"target in row 7 of `train` is .*nan.*finite target"),
        (table(put(TABLE, 8, 2, np.inf)), "input in row 8 of `train` has infinite values"),
        (table(put(TABLE, 8, 1, 3)), "input in row 8 of `train` has .*categories without a name"),
        (table(put(TABLE, 8, 1, 0.5)), "input in row 8 of `train` has .*categories without a name"),
        (table(put(TABLE, 8, 1, np.nan)), "input in row 8 of `train` has .*categories without a name"),
        (table(TABLE[:, :2]), "do not have one column for each of 3 features"),
    ],
)
def test_invalid_values_are_rejected_for_each_task(source: Source, message: str, prepared: Prepare) -> None:
    with pytest.raises(DataError, match=message):
        prepared(source)


def test_the_source_must_have_the_task_that_the_data_set_declares(
    prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(regression())
    name = next(name for name in sys.modules if name.startswith("given.data_"))
    monkeypatch.setattr(sys.modules[name], "task", lambda params: "classification")
    with pytest.raises(DataError, match="says classification, but open_source gave regression"):
        data.prepare({"name": name}, Path(), Path("none"))


@pytest.mark.parametrize("make", [language, regression, table])
def test_a_batch_is_these_rows_in_this_order(make: Callable[[], Source], prepared: Prepare, tmp_path: Path) -> None:
    manifest = prepared(make())
    split = data.load_split(manifest, "train", tmp_path / "work")
    whole, targets = split.batch(slice(None))
    rows = torch.tensor([7, 3, 3, 30])
    for found in (split.batch(rows), *split.stream([rows])):
        assert torch.equal(found[0], whole[rows])
        assert torch.equal(found[1], targets[rows])
    batches = list(split.stream([slice(0, 5), slice(5, len(split))]))
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), whole)
