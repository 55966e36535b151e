"""The table of samples beside a manifest, and the names of samples in predictions.csv."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.prepared import TABLE, given
from workflow_lib import config, data
from workflow_lib.data import Manifest, Source, names
from workflow_lib.data.rare_classes import apply_min_class_count
from workflow_lib.errors import DataError

HOUSES = "\n".join(["area,kind,price", *(f"{row * 7 % 90},{'ab'[row % 2]},{row}" for row in range(40))]) + "\n"


def prepared(folder: Path, name: str = "table", **params: Any) -> tuple[Path, Manifest]:
    """Prepare the data as the rule does; return the path of the manifest, and the manifest."""
    output = folder / "results" / "x.json"
    data.prepare({"name": name, "params": params}, folder, folder / "work", output=output)
    return output, Manifest.load(output)


def rows_of(path: Path) -> list[dict[str, str]]:
    with names.names_file(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def houses(tmp_path: Path) -> Path:
    (tmp_path / "houses.csv").write_text(HOUSES)
    return tmp_path


def test_every_row_is_in_one_split_with_its_target(houses: Path) -> None:
    path, manifest = prepared(houses, path="houses.csv", target="price", task="regression")
    listed = rows_of(path)
    assert sorted(int(line["row"]) for line in listed) == list(range(40))
    for split, summary in manifest.splits.items():
        rows = [int(line["row"]) for line in listed if line["split"] == split]
        assert len(rows) == summary.samples
        targets = data.map_split(manifest, split, houses / "work").targets.numpy()[:, 0]
        prices = targets * manifest.target_std[0] + manifest.target_mean[0]
        np.testing.assert_allclose(prices, rows, atol=1e-4)  # the price of a row is its number
    assert names.names_of_split(path, manifest, "test") == {
        "row": [line["row"] for line in listed if line["split"] == "test"]
    }


def test_the_digest_of_the_data_and_the_store_do_not_depend_on_the_table(houses: Path) -> None:
    settings = {"path": "houses.csv", "target": "price", "task": "regression"}
    _, manifest = prepared(houses, **settings)
    other = data.prepare({"name": "table", "params": settings}, houses, houses / "work")
    assert (other.names, other.digest, other.store) == ("", manifest.digest, manifest.store)
    assert replaced(manifest) == other


def replaced(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"names": ""})


def test_a_damaged_table_is_not_used(houses: Path) -> None:
    path, manifest = prepared(houses, path="houses.csv", target="price", task="regression")
    table = names.names_file(path)
    table.write_text(table.read_text().replace("test,0,", "test,0,1"))
    with pytest.raises(DataError, match="splits.csv: missing or damaged; run preprocess again"):
        names.names_of_split(path, manifest, "test")
    assert names.names_of_split(path, replaced(manifest), "test") is None


def test_texts_are_named_by_file_and_token(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{number:02}.txt").write_text("abcdefgh" * 20)
    path, _ = prepared(tmp_path, "text", path="texts", context=8)
    listed = rows_of(path)
    assert {line["file"] for line in listed} == {f"{number:02}.txt" for number in range(12)}
    assert len({(line["file"], line["token"]) for line in listed}) == len(listed)


def test_rows_of_rare_classes_keep_their_names() -> None:
    source = given(TABLE, np.array([0] * 3 + [1] * 28 + [2] * 29), classes=("few", "no", "yes"))
    settings = config.Data.model_validate({"min_class_count": 10})
    changed = apply_min_class_count(source, settings)
    assert changed.names_of("train", np.array([0, 1]))["row"].tolist() == [3, 4]


def test_a_data_set_with_splits_names_the_one_of_a_row() -> None:
    source = replace(given(TABLE, np.arange(60) % 2), targets={"train": np.arange(60) % 2, "test": np.arange(60) % 2})
    assert list(source.names_of("test", np.array([5]))) == ["of", "row"]


def test_wrong_names_are_rejected(tmp_path: Path) -> None:
    source: Source = replace(given(TABLE, np.arange(60) % 2), sample_names=lambda split, rows: {"file": ["a"]})
    with pytest.raises(DataError, match="Source.sample_names"):
        names.write_names(tmp_path / "x.csv", source, {"train": part(4)})
    assert list(tmp_path.iterdir()) == []


def part(rows: int) -> Any:
    from workflow_lib.data.splits import Part

    return Part("train", np.arange(rows), np.zeros(rows))


def test_too_many_samples_have_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(names, "MOST_NAMED", 3)
    assert names.write_names(tmp_path / "x.csv", given(TABLE, np.arange(60) % 2), {"train": part(4)}) == ""
    assert "4 samples are more than 3" in caplog.text


def test_names_come_before_the_columns_of_predictions() -> None:
    text = 'sample,target,p("a")\n0,1,0.5\n1,0,0.25\n'
    assert names.with_names(text, {"file": ["x,y.png", "z.png"]}) == (
        'file,sample,target,"p(""a"")"\n"x,y.png",0,1,0.5\nz.png,1,0,0.25\n'
    )
    assert names.with_names(text, None) == text
