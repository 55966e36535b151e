"""A file that is not a usable table is rejected with the place in it and what to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.datasets.made import (
    everything,
    opened,
    wines,
    written,
)
from workflow_lib import data
from workflow_lib.errors import DataError

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
    "a label that is a word": (
        ("a,y,z", "1,1,0", "2,0,maybe"),
        {"task": "multilabel", "target": ["y", "z"]},
        "line 3, column `z`: the label is `maybe`; allowed: 0 or 1, true or false; set data.params.task",
    ),
    "a label that is a number": (
        ("a,y,z", "1,1,0", "2,2,1"),
        {"task": "multilabel", "target": ["y", "z"]},
        "line 3, column `y`: the label is `2`; allowed: 0 or 1",
    ),
    "a label that is missing": (
        ("a,y,z", "1,1,0", "2,0,"),
        {"task": "multilabel", "target": ["y", "z"]},
        "line 3, column `z`: the target is missing; remove the row, or fill it",
    ),
    "a label that never varies": (
        ("a,y,z", "1,1,0", "2,0,False"),
        {"task": "multilabel", "target": ["y", "z"]},
        "column `z`: every label is 0: nothing to learn; remove it from data.params.target",
    ),
    "a second target that is missing": (
        ("a,y", "1,1", "2,0"),
        {"task": "multilabel", "target": ["y", "yy"]},
        r"has no column `yy` \(data.params.target\); did you mean `y`",
    ),
    "one number": (("a,y", "1,3", "2,3.0"), {"task": "regression"}, "column `y`: every target is 3: nothing to learn"),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "params", "message"), BAD.values(), ids=BAD.keys())
def test_bad_content_is_rejected_with_its_place(
    lines: Sequence[str], params: dict[str, Any], message: str, tmp_path: Path
) -> None:
    settings = {"name": "table", "params": {"path": written(tmp_path, *lines).name, "target": "y"} | params}
    with pytest.raises(DataError, match=message):
        data.prepare(settings, tmp_path, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_too_many_classes_are_rejected_with_the_advice_to_set_regression(tmp_path: Path) -> None:
    path = written(tmp_path, "a,y", *(f"1,{number}" for number in range(1001)))
    with pytest.raises(DataError, match="line 1002, column `y`: more than 1,000 different targets.*regression"):
        with opened("table", path, target="y"):
            pass


def test_too_many_categories_are_rejected(tmp_path: Path) -> None:
    path = written(tmp_path, "a,y", *(f"person {number},{number % 2}" for number in range(10_001)))
    with pytest.raises(DataError, match="column `a`: more than 10,000 categories; leave it out"):
        with opened("table", path, target="y"):
            pass


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_the_advised_command_converts_a_table_to_utf8(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "my file.csv"
    path.write_text("größe,y\n" + "1,p\n2,q\n" * 9, encoding=encoding)
    with pytest.raises(DataError, match="not UTF-8") as rejected:
        with opened("table", path, target="y"):
            pass
    command = str(rejected.value).split("`")[1]
    subprocess.run(["bash", "-c", command], check=True, timeout=60)
    with opened("table", tmp_path / "my file-utf8.csv", target="y") as source:
        assert [feature.name for feature in source.features] == ["größe"]


def test_bytes_that_are_not_utf8_are_rejected_with_their_place(tmp_path: Path) -> None:
    path = written(tmp_path, "a,y", "1,p")
    path.write_bytes(path.read_bytes() + "é,q\n".encode("latin-1"))
    with (
        pytest.raises(DataError, match=r"x.csv, line 3: not UTF-8 \(byte 8 of the file\)"),
        opened("table", path, target="y"),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "message"), [("no.csv", "no such file"), (".", "is a folder"), ("x.ods", "none of .csv")]
)
def test_a_file_that_is_no_table_is_rejected(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "x.ods").touch()
    with pytest.raises(DataError, match=message), opened("table", tmp_path / name, target="y"):
        pass


def test_damaged_parquet_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    wines().to_parquet(path)
    good = path.read_bytes()
    for content in (b"", good[:100], good[:-100], bytes(100) + good[100:], good[:8] + bytes(400) + good[408:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="x.parquet: "), opened("table", path, target="grower"):
            pass


def test_columns_of_other_types_are_rejected_unless_left_out(tmp_path: Path) -> None:
    frame = wines().assign(bottled=pd.Timestamp("2001-02-03"), grapes=[["a", "b"]] * 178)
    frame.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="column `bottled` has type timestamp.*data.params.features"):
        with opened("table", tmp_path / "x.parquet", target="grower"):
            pass
    with opened("table", tmp_path / "x.parquet", target="grower", features=("alcohol", "ash")) as source:
        np.testing.assert_array_equal(everything(source), frame[["alcohol", "ash"]].astype(np.float32))


def test_an_index_that_pandas_saved_is_not_a_feature(tmp_path: Path) -> None:
    wines()[::-1].to_parquet(tmp_path / "x.parquet")  # an index that is not 0, 1, ... is written as a column
    with opened("table", tmp_path / "x.parquet", target="grower") as source:
        assert len(source.features) == 5


def test_without_pyarrow_parquet_is_rejected_with_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wines().to_parquet(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        DataError, match=r"Parquet needs pyarrow: pip install -c .*constraints.txt 'everstep\[parquet\]'"
    ):
        with opened("table", tmp_path / "x.parquet", target="grower"):
            pass
