from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_diabetes, load_wine

from tests.datasets.contract import ChecksumContract
from workflow_lib import data, plugins
from workflow_lib.data import Feature, Source
from workflow_lib.data.shard import read_shard
from workflow_lib.errors import DataError


def diabetes() -> pd.DataFrame:
    """442 patients: numbers, a category, missing values of both kinds, and how the illness went on as a number."""
    frame = load_diabetes(as_frame=True, scaled=False).frame
    frame["sex"] = frame["sex"].map({1.0: "woman", 2.0: "man"})
    frame.loc[3:9, "bmi"] = np.nan
    frame.loc[11:12, "sex"] = None
    return frame


def wines() -> pd.DataFrame:
    """178 wines of three growers, whose names are the target."""
    wine = load_wine(as_frame=True)
    return wine.data.iloc[:, :5].assign(grower=[wine.target_names[target] for target in wine.target])


def in_splits(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(part=np.array(["train", "train", "train", "val", "test"])[np.arange(len(frame)) % 5])


@contextmanager
def opened(path: Path, **params: Any) -> Iterator[Source]:
    plugin = plugins.load("data", "table")
    with closing(plugin.open_source(plugin.Params(path=path, **params), path.parent)) as source:
        yield source


def everything(source: Source, split: str = "train") -> np.ndarray:
    return source.read(split, np.arange(len(source.targets[split])))


def values(manifest: data.Manifest, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of a split as they lie in the shards."""
    paths = [folder / "work" / "data" / manifest.store / one.name for one in manifest.shards if one.split == split]
    stored = [shard for path in paths if (shard := read_shard(path))]
    return np.concatenate([one.inputs for one in stored]), np.concatenate([one.targets for one in stored])[:, 0]


def written(folder: Path, *lines: str, name: str = "x.csv") -> Path:
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder / name


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


class TestClassificationWithSplits(TableContract):
    task = "classification"


class TestParquetClassificationWithSplits(TableContract):
    file = "x.parquet"
    task = "classification"


def test_the_values_are_those_of_the_file(tmp_path: Path) -> None:
    frame = diabetes()
    frame.to_csv(tmp_path / "x.csv", index=False)
    with opened(tmp_path / "x.csv", target="target", task="regression") as source:
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


def test_a_split_column_says_where_a_row_belongs(tmp_path: Path) -> None:
    frame = in_splits(wines())
    frame.to_csv(tmp_path / "x.csv", index=False)
    with opened(tmp_path / "x.csv", target="grower", split="part") as source:
        assert "part" not in [feature.name for feature in source.features]
        for split in ("train", "val", "test"):
            rows = frame[frame["part"] == split]
            np.testing.assert_array_equal(everything(source, split), rows.iloc[:, :5].astype(np.float32))
            assert [source.classes[number] for number in source.targets[split]] == rows["grower"].tolist()


def test_a_category_that_train_does_not_have_is_unknown(tmp_path: Path) -> None:
    path = written(tmp_path, "c,y,s", "b,1,train", "a,2,train", "new,1,val", ",2,val", "other,1,test", "a,2,test")
    with opened(path, target="y", split="s") as source:
        assert source.features == (Feature("c", ("missing", "not in train", "a", "b")),)
        assert everything(source)[:, 0].tolist() == [3, 2]
        assert everything(source, "val")[:, 0].tolist() == [1, 0]
        assert everything(source, "test")[:, 0].tolist() == [1, 2]


def test_what_only_held_out_rows_have_is_unknown_where_splits_are_drawn(tmp_path: Path) -> None:
    """Each row has a category of its own but for two that all have; a number is missing here and there."""
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


def test_another_draw_of_train_knows_other_categories(tmp_path: Path) -> None:
    path = written(tmp_path, "c,y", *(f"only {row},{row}" for row in range(40)))
    params = {"path": path.name, "target": "y", "task": "regression", "categorical": ["c"]}
    drawn = [
        data.prepare({"name": "table", "params": params, "split_seed": seed}, tmp_path, tmp_path / "work")
        for seed in (1, 2)
    ]
    assert drawn[0].store != drawn[1].store
    assert drawn[0].features != drawn[1].features


def test_a_split_column_without_test_rows_leaves_fewer_to_know(tmp_path: Path) -> None:
    """Test is drawn from train then; the rows of val before them count as well."""
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


def test_a_column_that_only_held_out_rows_have_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b,y", *(f"{row},{row if row == 3 else ''},{row}" for row in range(40)))
    settings = {"name": "table", "params": {"path": path.name, "target": "y", "task": "regression"}}
    refused = 0
    for seed in range(12):
        try:
            data.prepare(settings | {"split_seed": seed}, tmp_path, tmp_path / f"work-{seed}")
        except DataError as error:
            assert "x.csv, column `b`: no row of train has a value" in str(error)  # noqa: PT017 (some seeds)
            assert not (tmp_path / f"work-{seed}").exists()
            refused += 1
    assert 0 < refused < 12


def test_numbers_can_be_names(tmp_path: Path) -> None:
    path = written(tmp_path, "code,n,y", "10,1,a", "9,2,b", "10,3,a", ",4,b")
    with opened(path, target="y", categorical=("code",)) as source:
        assert source.features == (Feature("code", ("missing", "not in train", "9", "10")), Feature("n"))
        assert everything(source).tolist() == [[3, 1], [2, 2], [3, 3], [0, 4]]


def test_numbers_can_be_names_in_parquet(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"code": [10, 9, None, 10], "half": [0.5, 2, 2, 0.5], "yes": [True, False] * 2, "y": [1, 0] * 2}
    )
    frame.to_parquet(tmp_path / "x.parquet")
    with opened(tmp_path / "x.parquet", target="y", categorical=("code", "half")) as source:
        assert [f.categories[2:] for f in source.features] == [("9", "10"), ("0.5", "2"), ("False", "True")]
        assert everything(source).tolist() == [[3, 2, 3], [2, 3, 2], [0, 3, 3], [3, 2, 2]]
        assert source.classes == ("0", "1")


def test_only_the_features_asked_for_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, "id,a,b,y", "x1,1,2,p", "7,3,4,q")
    with opened(path, target="y", features=("b", "a")) as source:
        assert [feature.name for feature in source.features] == ["a", "b"]  # in the order of the file
        assert everything(source).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_read_as_spreadsheets_write_it(tmp_path: Path, end: str, delimiter: str) -> None:
    """A mark before the first byte, quotes, quoted line ends and delimiters, empty lines, no end of the last line."""
    with (tmp_path / "x.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerow(["näme", "n", "y"])
        writer.writerow([f'a "b"{delimiter}{end}c', "1", "p"])
        file.write(end + end)
        writer.writerow([" é ", " 2.5 ", "q"])
        file.write(delimiter.join(["é", "-3e2", "p"]))
    with opened(tmp_path / "x.csv", target="y", delimiter=delimiter) as source:
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
    with opened(path, target="y", task="regression") as source:
        for row in range(rows):
            assert source.read("train", np.array([row])).tolist() == [[row]]
        assert source.targets["train"].tolist() == [*(row + 0.5 for row in range(rows)), 999]


def test_the_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of 24 MB with 8 MB to read it in: of each row only the target is held."""
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


BAD: dict[str, tuple[Sequence[str], dict[str, Any], str]] = {
    "empty": ((), {}, "x.csv: is empty"),
    "no rows": (("a,y",), {}, "x.csv: has no rows of train"),
    "no features": (("y", "1", "2"), {}, "x.csv: has no column besides the target"),
    "two columns of a name": (("a,b,a,y", "1,2,3,p"), {}, "x.csv: 2 columns are named `a`"),
    "a column without a name": ((",a,y", "0,1,p"), {}, r"x.csv: column 1 has no name \(row numbers\?\)"),
    "no such target": (("a,label", "1,p"), {"target": "lable"}, "no column `lable` .*target.*did you mean `label`"),
    "no such feature": (("a,y", "1,p"), {"features": ("b",)}, r"no column `b` \(data.params.features\).*: a, y"),
    "no such category": (("a,y", "1,p"), {"categorical": ("b",)}, r"no column `b` \(data.params.categorical\)"),
    "no such split": (("a,y", "1,p"), {"split": "part"}, r"no column `part` \(data.params.split\)"),
    "the target as a feature": (("a,y", "1,p"), {"features": ("y",)}, "`y` is the target or the split"),
    "a value too few": (("a,b,y", "1,2,p", "1,q"), {}, "x.csv, line 3: has 2 values, but the first line names 3"),
    "a value too many": (("a,y", "1,p", "", "1,2,q"), {}, "x.csv, line 4: has 3 values, but the first line names 2"),
    "a quote that stays open": (("a,y", "1,p", '"1,q'), {}, r"x.csv, line 3: not CSV"),
    "text behind a quote": (("a,y", '"1"x,q'), {}, r"x.csv, line 2: not CSV"),
    "a word among numbers": (
        ("a,y", "1,p", "2,q", "three,q"),
        {},
        "x.csv, line 4, column `a`: `three` is not a number, but `1` in line 2 is; list the .*data.params.categorical",
    ),
    "a number among words": (("a,y", "x,p", "2,q"), {}, "line 3, column `a`: `2` is a number, but `x` in line 2 is n"),
    "a decimal comma": (('a,y', '1.5,p', '"2,5",q'), {}, "line 3, column `a`: `2,5` is not a number"),
    "an infinite number": (("a,y", "1,p", "inf,q"), {}, "line 3, column `a`: inf is too large"),
    "a number beyond float32": (("a,y", "-1e39,p", "1,q"), {}, r"line 2, column `a`: -1e\+39 is too large"),
    "nothing but missing values": (("a,b,y", ",1,p", "NA,1,q"), {}, "column `a`: no row of train has a value"),
    "missing in all of train": (
        ("a,b,y,s", ",1,p,train", ",1,q,train", "7,1,p,val"),
        {"split": "s"},
        "column `a`: no row of train has a value",
    ),
    "a missing target": (("a,y", "1,p", "2,", "3,q"), {}, "x.csv, line 3, column `y`: the target is missing"),
    "one class": (("a,y", "1,p", "2,p"), {}, "column `y`: every target is `p`: nothing to learn"),
    "half a class": (("a,y", "1,0", "2,0.5"), {}, "line 3, column `y`: the target 0.5 is a fraction.*task: regression"),
    "a class that train does not have": (
        ("a,y,s", "1,p,train", "2,q,train", "1,r,val"),
        {"split": "s"},
        "line 4, column `y`: no row of train has the class `r`",
    ),
    "an unknown split": (("a,y,s", "1,p,train", "2,q,dev"), {"split": "s"}, "line 3, column `s`: no split `dev`"),
    "no train": (("a,y,s", "1,p,val", "2,q,test"), {"split": "s"}, "has no rows of train"),
    "a number that is a word": (
        ("a,y", "1,2", "2,p"),
        {"task": "regression"},
        "line 3, column `y`: the target `p` is not a number; for names set data.params.task: classification",
    ),
    "a number that is missing": (
        ("a,y", "1,2", "2,NA"),
        {"task": "regression"},
        "line 3, column `y`: the target is missing",
    ),
    "one number": (("a,y", "1,3", "2,3.0"), {"task": "regression"}, "column `y`: every target is 3: nothing to learn"),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "params", "message"), BAD.values(), ids=BAD.keys())
def test_bad_content_is_refused_with_its_place(
    lines: Sequence[str], params: dict[str, Any], message: str, tmp_path: Path
) -> None:
    settings = {"name": "table", "params": {"path": written(tmp_path, *lines).name, "target": "y"} | params}
    with pytest.raises(DataError, match=message):
        data.prepare(settings, tmp_path, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_too_many_classes_are_a_regression_perhaps(tmp_path: Path) -> None:
    path = written(tmp_path, "a,y", *(f"1,{number}" for number in range(1001)))
    with pytest.raises(DataError, match="line 1002, column `y`: more than 1,000 different targets.*regression"):
        with opened(path, target="y"):
            pass


def test_a_text_in_every_row_is_no_category(tmp_path: Path) -> None:
    path = written(tmp_path, "a,y", *(f"person {number},{number % 2}" for number in range(10_001)))
    with pytest.raises(DataError, match="column `a`: more than 10,000 categories; leave it out"):
        with opened(path, target="y"):
            pass


def test_bytes_that_are_not_utf8_are_refused_with_their_place(tmp_path: Path) -> None:
    path = written(tmp_path, "a,y", "1,p")
    path.write_bytes(path.read_bytes() + "é,q\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"x.csv, line 3: not UTF-8 \(byte 8 of the file\)"), opened(path, target="y"):
        pass


@pytest.mark.parametrize(("name", "message"), [("no.csv", "no such file"), (".", "is a folder"), ("x.xlsx", "neither")])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "x.xlsx").touch()
    with pytest.raises(DataError, match=message), opened(tmp_path / name, target="y"):
        pass


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    wines().to_parquet(path)
    good = path.read_bytes()
    for content in (b"", good[:100], good[:-100], bytes(100) + good[100:], good[:8] + bytes(400) + good[408:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="x.parquet: "), opened(path, target="grower"):
            pass


def test_columns_of_other_types_are_refused_unless_left_out(tmp_path: Path) -> None:
    frame = wines().assign(bottled=pd.Timestamp("2001-02-03"), grapes=[["a", "b"]] * 178)
    frame.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="column `bottled` has type timestamp.*data.params.features"):
        with opened(tmp_path / "x.parquet", target="grower"):
            pass
    with opened(tmp_path / "x.parquet", target="grower", features=("alcohol", "ash")) as source:
        np.testing.assert_array_equal(everything(source), frame[["alcohol", "ash"]].astype(np.float32))


def test_an_index_that_pandas_saved_is_not_a_feature(tmp_path: Path) -> None:
    wines()[::-1].to_parquet(tmp_path / "x.parquet")  # an index that is not 0, 1, ... is written as a column
    with opened(tmp_path / "x.parquet", target="grower") as source:
        assert len(source.features) == 5


def test_without_pyarrow_parquet_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wines().to_parquet(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"Parquet needs pyarrow: pip install 'everstep\[parquet\]'"):
        with opened(tmp_path / "x.parquet", target="grower"):
            pass
