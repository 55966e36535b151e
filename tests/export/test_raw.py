"""The preprocessing inside an exported graph, for tables with columns of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from tests.support.prepared import FEATURES, TABLE, shapes
from workflow_lib import export
from workflow_lib.data import Feature, Manifest, ModelSpec, prepare
from workflow_lib.data.normalisation import normalise
from workflow_lib.export import raw

SECONDS = 1_700_000_000 + np.arange(60) * 37 % 101
KINDS = {
    "numbers": {"a": np.arange(60) * 7 % 11, "b": np.where(np.arange(60) % 5, np.arange(60) * 3 % 17, np.nan)},
    "categories": {
        "a": np.array(["x", "y", "z"])[np.arange(60) % 3],
        "b": np.array(["1", "2.5", ""])[np.arange(60) % 3],
    },
    "times": {"a": SECONDS + 0.25, "b": np.array(["x", "y", "z"])[np.arange(60) % 3]},
}


class Inputs(nn.Module):
    """Return the inputs, so that they can be compared."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * 1.0


def session_of(manifest: Manifest, stored: np.ndarray) -> Any:
    network = raw.whole(Inputs(), manifest, None)
    proto = export.convert(network, raw.traced(manifest, torch.from_numpy(stored[:2].copy())), 18)
    raw.read_categories(proto, manifest)
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("kind", KINDS)
def test_raw_columns_become_the_inputs_of_the_training(kind: str, tmp_path: Path) -> None:
    import pandas

    from workflow_lib.data import map_split

    frame = pandas.DataFrame(KINDS[kind]).assign(y=np.array(["no", "yes"])[np.arange(60) % 2])
    frame.to_csv(tmp_path / "x.csv", index=False)
    params = {"path": "x.csv", "target": "y", "categorical": ["b"] if kind == "categories" else []}
    manifest = prepare({"name": "table", "params": params}, tmp_path, tmp_path / "work")
    stored = map_split(manifest, "train", tmp_path / "work").stored(slice(None))
    session = session_of(manifest, stored)
    columns = raw.described(manifest)
    read = pandas.read_csv(tmp_path / "x.csv", dtype=dict.fromkeys(columns["categories"], str))
    given = {
        "numbers": read[columns["numbers"]].to_numpy("float64"),
        "categories": read[columns["categories"]].fillna("").to_numpy(object),
    }
    (found,) = session.run(None, {name: values for name, values in given.items() if values.shape[1]})
    expected = normalise(manifest, torch.from_numpy(stored)).numpy()
    for row in expected:  # train has some of the rows
        assert np.abs(found - row).max(axis=1).min() < 1e-5
    (again,) = session.run(None, raw.feeds(manifest, stored))
    np.testing.assert_allclose(again, expected, atol=1e-6)


def user_table() -> Manifest:
    """Return the manifest of a data set of a user, whose categories have no name for a missing or an unknown value."""
    return Manifest.model_construct(
        digest="", store="0" * 32, data={"name": "mine", "params": {}}, task="classification", input_shape=(3,),
        dtype="float32", classes=("no", "yes"), features=FEATURES, vocabulary=(), scale=1.0,
        mean=(1.0, 0.0, 0.0), std=(2.0, 1.0, 1.0), target_mean=(), target_std=(), splits={}, shards=(), sources={},
    )  # fmt: skip


def test_the_table_of_a_users_data_set_works_too_and_an_unknown_name_is_no_category() -> None:
    manifest = user_table()
    assert shapes(manifest) == ModelSpec((3,), 2, "classification", (0, 3, 0))
    session = session_of(manifest, TABLE)
    given = raw.feeds(manifest, TABLE)
    assert given["categories"][:3, 0].tolist() == ["red", "green", "blue"]
    (found,) = session.run(None, given)
    np.testing.assert_allclose(found, normalise(manifest, torch.from_numpy(TABLE.copy())).numpy(), atol=1e-6)
    (found,) = session.run(None, {**given, "categories": np.full((60, 1), "mauve", object)})
    assert (found[:, 1] == raw.NO_CATEGORY).all()


def test_a_category_named_like_the_unknown_one_keeps_its_number() -> None:
    feature = Feature("a", ("missing", "not in train", "not in train", "x"))
    columns = raw.Columns((feature,))
    assert columns.texts(feature) == {"": 0, "not in train": 2, "x": 3}
    assert raw._texts(columns, feature, np.array([0.0, 1.0, 2.0, 3.0])) == ["", "not in train?", "not in train", "x"]


@pytest.mark.parametrize("missing", [[], ["?"]])
def test_an_empty_text_is_missing_even_if_only_other_texts_mean_that(missing: list[str]) -> None:
    manifest = user_table().model_copy(update={"data": {"name": "mine", "params": {"missing": missing}}})
    texts = raw.Columns.of(manifest).texts(Feature("a", ("missing", "not in train", "x")))
    assert texts == {"": 0, **dict.fromkeys(missing, 0), "x": 2}
