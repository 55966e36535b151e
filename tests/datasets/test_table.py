"""A table has the values of its file, in CSV and in Parquet; categories are those of train."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from tests.datasets.contract import ChecksumContract
from tests.datasets.made import (
    diabetes,
    everything,
    in_splits,
    opened,
    wines,
    written,
)
from workflow_lib import data, plugins
from workflow_lib.data import Feature
from workflow_lib.data.shard import read_shard
from workflow_lib.errors import DataError


def values(manifest: data.Manifest, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets of a split as stored in the shards."""
    store = folder / "work" / "data" / manifest.store
    paths = [store / shard.name for shard in manifest.shards if shard.split == split]
    stored = [content for path in paths if (content := read_shard(path))]
    return np.concatenate([content.inputs for content in stored]), np.concatenate([c.targets for c in stored])[:, 0]


class TableContract(ChecksumContract):
    name = "table"
    file = "x.csv"
    task = "regression"

    @pytest.fixture(autouse=True)
    def many_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("workflow_lib.datasets._tables.PIECE_ROWS", 37)

    def frame(self) -> pd.DataFrame:
        return diabetes() if self.task == "regression" else in_splits(wines())

    def save(self, frame: pd.DataFrame, path: Path) -> None:
        if self.file.endswith("csv"):
            frame.to_csv(path, index=False)
        elif self.file.endswith("xlsx"):
            frame.to_excel(path, index=False)
        else:
            frame.to_parquet(path, row_group_size=100)

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        self.save(self.frame(), tmp_path / self.file)
        if self.task == "regression":
            return {"path": self.file, "target": "target", "task": "regression"}
        return {"path": self.file, "target": "grower", "split": "part"}

    def change(self, folder: Path) -> None:
        frame = self.frame()
        frame.iloc[20, 0] += 1
        self.save(frame, folder / self.file)


class TestRegression(TableContract):
    pass


class TestParquet(TableContract):
    file = "x.parquet"


class TestExcel(TableContract):
    file = "x.xlsx"

    def frame(self) -> pd.DataFrame:
        return super().frame().head(150)  # a workbook is slow to write


class TestClassificationWithSplits(TableContract):
    task = "classification"


class TestParquetClassificationWithSplits(TableContract):
    file = "x.parquet"
    task = "classification"


class TestSeveralNumbers(TableContract):
    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        self.save(self.frame(), tmp_path / self.file)
        return {"path": self.file, "target": ["target", "bp"], "task": "regression"}


class TestLabels(TableContract):
    file = "x.parquet"

    def frame(self) -> pd.DataFrame:
        return labelled(diabetes())

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        self.save(self.frame(), tmp_path / self.file)
        return {"path": self.file, "target": ["old", "heavy", "ill"], "task": "multilabel"}


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the patients with labels of three spellings: numbers, booleans and texts."""
    ill = np.where(frame["target"] > 200, "Yes", "no")
    labels = {"old": (frame["age"] > 60).astype(int), "heavy": frame["bmi"] > 30}
    return frame.assign(**labels, ill=pd.Series(ill).map({"Yes": "TRUE", "no": "false"})).drop(columns="target")


def test_the_values_are_those_of_the_file(tmp_path: Path) -> None:
    frame = diabetes()
    frame.to_csv(tmp_path / "x.csv", index=False)
    with opened("table", tmp_path / "x.csv", target="target", task="regression") as source:
        inputs = everything(source)
        names = [feature.name for feature in source.features]
        np.testing.assert_array_equal(source.targets["train"], frame["target"].astype(np.float32))
    assert names == ["age", "sex", "bmi", "bmi is missing", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]
    for name in ("age", "bmi", "bp", "s6"):
        np.testing.assert_array_equal(inputs[:, names.index(name)], frame[name].astype(np.float32))
    np.testing.assert_array_equal(inputs[:, 3], frame["bmi"].isna())
    codes = frame["sex"].map({"man": 2, "woman": 3}).fillna(0)
    np.testing.assert_array_equal(inputs[:, 1], codes)
    assert source.features[1] == Feature("sex", ("missing", "not in train", "man", "woman"))


def test_csv_and_parquet_are_the_same_data(tmp_path: Path) -> None:
    diabetes().to_csv(tmp_path / "x.csv", index=False)
    diabetes().to_parquet(tmp_path / "x.parquet", row_group_size=100)
    digests = set()
    for name in ("x.csv", "x.parquet"):
        params = {"path": name, "target": "target", "task": "regression"}
        digests.add(data.prepare({"name": "table", "params": params}, tmp_path, tmp_path / "work").digest)
    assert len(digests) == 1


def test_a_split_column_gives_the_split_of_each_row(tmp_path: Path) -> None:
    frame = in_splits(wines())
    frame.to_csv(tmp_path / "x.csv", index=False)
    with opened("table", tmp_path / "x.csv", target="grower", split="part") as source:
        assert "part" not in [feature.name for feature in source.features]
        for split in ("train", "val", "test"):
            rows = frame[frame["part"] == split]
            np.testing.assert_array_equal(everything(source, split), rows.iloc[:, :5].astype(np.float32))
            assert [source.classes[number] for number in source.targets[split]] == rows["grower"].tolist()


def test_a_category_that_train_does_not_have_is_unknown(tmp_path: Path) -> None:
    path = written(tmp_path, "c,y,s", "b,1,train", "a,2,train", "new,1,val", ",2,val", "other,1,test", "a,2,test")
    with opened("table", path, target="y", split="s") as source:
        assert source.features == (Feature("c", ("missing", "not in train", "a", "b")),)
        assert everything(source)[:, 0].tolist() == [3, 2]
        assert everything(source, "val")[:, 0].tolist() == [1, 0]
        assert everything(source, "test")[:, 0].tolist() == [1, 2]


def test_categories_of_held_out_rows_only_are_unknown(tmp_path: Path) -> None:
    """Half of the rows have unique categories, and some numbers are missing."""
    lines = [f"{'abc'[row % 3] if row % 2 else f'only {row}'},{'' if row % 7 == 0 else row},{row}" for row in range(60)]
    path = written(tmp_path, "c,n,y", *lines)
    params = {"path": path.name, "target": "y", "task": "regression"}
    manifest = data.prepare({"name": "table", "params": params}, tmp_path, tmp_path / "work")
    stored = {split: values(manifest, split, tmp_path) for split in data.SPLITS}
    train = {lines[int(y)].split(",")[0] for y in stored["train"][1]}
    known = ("missing", "not in train", *sorted(train))
    assert manifest.features == (Feature("c", known), Feature("n"), Feature("n is missing"))
    assert len(train) < 3 + 30
    assert manifest.spec.categories == (len(known), 0, 0)
    for inputs, targets in stored.values():
        for code, y in zip(inputs[:, 0], targets, strict=True):
            name = lines[int(y)].split(",")[0]
            assert known[int(code)] == (name if name in train else "not in train")
    assert manifest.mean[1] == pytest.approx(np.nanmean(stored["train"][0][:, 1]), rel=1e-6)


def test_another_draw_of_train_has_other_categories(tmp_path: Path) -> None:
    path = written(tmp_path, "c,y", *(f"only {row},{row}" for row in range(40)))
    params = {"path": path.name, "target": "y", "task": "regression", "categorical": ["c"]}
    drawn = [
        data.prepare({"name": "table", "params": params, "split_seed": seed}, tmp_path, tmp_path / "work")
        for seed in (1, 2)
    ]
    assert drawn[0].store != drawn[1].store
    assert drawn[0].features != drawn[1].features


def test_categories_are_learned_from_train_only_if_test_is_drawn(tmp_path: Path) -> None:
    """Test is then drawn from train; its rows are numbered after those of val in the file."""
    lines = [f"only {row},{row},{'val' if row < 20 else 'train'}" for row in range(60)]
    path = written(tmp_path, "c,y,s", *lines)
    params = {"path": path.name, "target": "y", "task": "regression", "split": "s", "categorical": ["c"]}
    manifest = data.prepare({"name": "table", "params": params}, tmp_path, tmp_path / "work")
    stored = {split: values(manifest, split, tmp_path) for split in data.SPLITS}
    assert set(manifest.features[0].categories[2:]) == {f"only {int(y)}" for y in stored["train"][1]}
    assert (stored["train"][0] > 1).all()
    assert (stored["val"][0] == 1).all()
    assert (stored["test"][0] == 1).all()
    assert len(stored["test"][0])


def test_a_column_that_only_held_out_rows_have_is_rejected(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b,y", *(f"{row},{row if row == 3 else ''},{row}" for row in range(40)))
    settings = {"name": "table", "params": {"path": path.name, "target": "y", "task": "regression"}}
    rejected = 0
    for seed in range(12):
        try:
            data.prepare(settings | {"split_seed": seed}, tmp_path, tmp_path / f"work-{seed}")
        except DataError as error:
            assert "x.csv, column `b`: no row of train has a value" in str(error)  # noqa: PT017 (some seeds)
            assert not (tmp_path / f"work-{seed}").exists()
            rejected += 1
    assert 0 < rejected < 12


def test_numbers_can_be_names(tmp_path: Path) -> None:
    path = written(tmp_path, "code,n,y", "10,1,a", "9,2,b", "10,3,a", ",4,b")
    with opened("table", path, target="y", categorical=("code",)) as source:
        assert source.features == (Feature("code", ("missing", "not in train", "9", "10")), Feature("n"))
        assert everything(source).tolist() == [[3, 1], [2, 2], [3, 3], [0, 4]]


def test_numbers_can_be_names_in_parquet(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"code": [10, 9, None, 10], "half": [0.5, 2, 2, 0.5], "yes": [True, False] * 2, "y": [1, 0] * 2}
    )
    frame.to_parquet(tmp_path / "x.parquet")
    with opened("table", tmp_path / "x.parquet", target="y", categorical=("code", "half")) as source:
        assert [f.categories[2:] for f in source.features] == [("9", "10"), ("0.5", "2"), ("False", "True")]
        assert everything(source).tolist() == [[3, 2, 3], [2, 3, 2], [0, 3, 3], [3, 2, 2]]
        assert source.classes == ("0", "1")


def test_only_the_features_of_the_setting_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, "id,a,b,y", "x1,1,2,p", "7,3,4,q")
    with opened("table", path, target="y", features=("b", "a")) as source:
        assert [feature.name for feature in source.features] == ["a", "b"]  # in the order of the file
        assert everything(source).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_read_as_spreadsheets_write_it(tmp_path: Path, end: str, delimiter: str) -> None:
    """Byte order mark, quotes, quoted line ends and delimiters, empty lines, no end of the last line."""
    with (tmp_path / "x.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerow(["näme", "n", "y"])
        writer.writerow([f'a "b"{delimiter}{end}c', "1", "p"])
        file.write(end + end)
        writer.writerow([" é ", " 2.5 ", "q"])
        file.write(delimiter.join(["é", "-3e2", "p"]))
    with opened("table", tmp_path / "x.csv", target="y", delimiter=delimiter) as source:
        assert source.features == (
            Feature("näme", ("missing", "not in train", f'a "b"{delimiter}{end}c', "é")),
            Feature("n"),
        )
        assert everything(source).tolist() == [[2, 1], [3, 2.5], [3, -300]]
        assert source.read("train", np.array([2])).tolist() == [[3, -300]]


@pytest.mark.parametrize("rows", [36, 37, 38, 74, 75, 1])
def test_rows_are_found_wherever_a_piece_ends(tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflow_lib.datasets._tables.PIECE_ROWS", 37)
    lines = [f"{row},{row + 0.5}" for row in range(rows)]
    path = written(tmp_path, "n,y", *lines, "999,999")
    with opened("table", path, target="y", task="regression") as source:
        for row in range(rows):
            assert source.read("train", np.array([row])).tolist() == [[row]]
        assert source.targets["train"].tolist() == [*(row + 0.5 for row in range(rows)), 999]


def test_the_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of 24 MB is read with at most 8 MB more memory: only targets are kept."""
    path = tmp_path / "x.csv"
    block = "".join(f"{n},{n % 97},text {n % 31},{'x' * 800},{n % 5}\n" for n in range(10_000))
    path.write_text("a,b,c,d,y\n" + 3 * block)
    small = written(tmp_path, "a,b,c,d,y", "1,2,t,x,0", "2,2,t,x,1", name="small.csv")
    code = f"""
import resource, sys
from pathlib import Path
import numpy as np
from workflow_lib import plugins
plugin = plugins.load("data", "table")
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def read(path):
    source = plugin.open_source(plugin.Params(path=path, target="y"), Path("/"))
    source.read("train", np.arange(0, len(source.targets["train"]), 500))
read({str(small)!r})
before = used()
read({str(path)!r})
print(used() - before)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert path.stat().st_size > 24e6
    assert float(shown.stdout) < 8


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_several_numbers_are_targets_in_the_order_of_the_setting(tmp_path: Path, name: str) -> None:
    frame = diabetes()
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_parquet(tmp_path / "x.parquet")
    with opened("table", tmp_path / name, target=["target", "bp"], task="regression") as source:
        np.testing.assert_array_equal(source.targets["train"], frame[["target", "bp"]].astype(np.float32))
        assert source.outputs == ("target", "bp")
        assert "bp" not in [feature.name for feature in source.features]


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_labels_are_0_and_1_in_any_spelling(tmp_path: Path, name: str) -> None:
    frame = labelled(diabetes())
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_parquet(tmp_path / "x.parquet")
    with opened("table", tmp_path / name, target=("ill", "old", "heavy"), task="multilabel") as source:
        assert source.classes == ("ill", "old", "heavy")
        expected = np.column_stack([frame["ill"] == "TRUE", frame["old"], frame["heavy"]])
        np.testing.assert_array_equal(source.targets["train"], expected)
    with opened("table", tmp_path / name, target="old", task="multilabel", features=("bp",)) as source:
        assert source.targets["train"].tolist() == [[value] for value in frame["old"]]


def test_a_single_target_in_a_list_is_the_same_data() -> None:
    params = plugins.load("data", "table").Params
    dumped = [params(path="x.csv", target=target).model_dump_json() for target in ("y", ["y"])]
    assert dumped[0] == dumped[1]
    assert '"target":"y"' in dumped[0]


@pytest.mark.parametrize(
    ("target", "task", "said"),
    [
        (
            ["a", "b"],
            "classification",
            "predicts one column, but data.params.target lists 2; allowed for several: regr",
        ),
        (["a", "b", "a"], "regression", "`a` is listed 2 times; list each column once"),
    ],
)
def test_targets_that_do_not_fit_the_task_are_rejected(target: list[str], task: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        plugins.load("data", "table").Params(path="x.csv", target=target, task=task)
