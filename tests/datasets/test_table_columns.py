"""The kind of each column is logged, and probable mistakes are rejected or logged."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from tests.datasets.made import (
    table,
)
from workflow_lib import plugins
from workflow_lib.errors import DataError


@pytest.mark.parametrize(
    "values",
    [["10-20", "20-30", "65+"], ["<=50K", ">50K"], ["B12", "A3", "12A"], ["1st", "2nd"], ["4WD", "2WD"], ["a,b", "c"],
     ["+", "-"], ["Q1", "Q2"], ["2019-20", "2020-21"], ["m", "f"],
     ["1/2", "3/4"], ["100%", "enriched", "none"], ["40-", "20-39", "0-19"], ["5 doors", "3 doors"], ["1-3", "4-6"]],
)  # fmt: skip
def test_names_with_digits_are_categories(tmp_path: Path, values: list[str]) -> None:
    source = table(tmp_path, {"c": values * 12})
    assert source.features[0].categories[2:] == tuple(sorted(values))
    if "none" not in values:
        assert table(tmp_path, {"y": values * 12}).classes == tuple(sorted(values))


def test_a_column_of_unique_texts_is_rejected_unless_listed(tmp_path: Path) -> None:
    names = [f"Mr. {chr(97 + row % 26)}{row}" if row % 5 else "unknown" for row in range(60)]
    with pytest.raises(DataError, match="column `n`: 48 of 60 rows have a text that no other row has"):
        table(tmp_path, {"n": names})
    assert len(table(tmp_path, {"n": names}, categorical=("n",)).features[0].categories) == 51
    with pytest.raises(DataError, match="column `y`: 48 of 60 rows have a target that no other row has"):
        table(tmp_path, {"y": names})


def test_a_column_of_names_of_splits_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column `part`: its values are names of splits; set data.params.split: part"):
        table(tmp_path, {"part": ["Train", "train", "test", "Train"] * 10})


def test_the_kind_of_each_column_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns: dict[str, list[Any]] = {"n": [1, 2.5, "", 4] * 10, "c": ["red", "blue"] * 20}
    with caplog.at_level(logging.INFO):
        table(tmp_path, columns)
    logged = [
        "`y`: target, 2 classes (no, yes)",
        "`n`: number, 1 to 4, some missing",
        "`c`: category, 2 different (blue, red)",
    ]
    assert all(any(line in message for message in caplog.messages) for line in logged)
    plugin = plugins.load("data", "table")
    lines = plugin.describe(plugin.Params(path=tmp_path / "x.csv", target="y"), Path("/"))
    assert lines[:1] == logged[:1]
    assert {*logged} <= {*lines}


DOUBTFUL: dict[str, tuple[list[Any], str]] = {
    "a leading zero": (["01234", "12345"] * 20, "`01234` in line 2 is read as a number"),
    "a constant": ([7] * 40, "every row has the same value"),
    "a constant text": (["a"] * 40, "every row has the same value"),
    "numbers of rows": (list(range(100, 140)), "counts the rows"),
    "one number beyond all others": (
        [1e30, *(row / 8 for row in range(39))],
        r"1e\+30 is so far away that most other numbers become equal",
    ),
    "two spellings": (["Yes", "no", "yes", "no"] * 10, "`(Y|y)es` and `(Y|y)es` are two categories"),
}


@pytest.mark.parametrize(("values", "message"), DOUBTFUL.values(), ids=DOUBTFUL.keys())
def test_a_doubtful_column_is_reported(
    tmp_path: Path, values: list[Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    table(tmp_path, {"c": values})
    (logged,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert re.search(message, logged)
    assert "column `c`" in logged


def test_a_table_that_never_varies_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every row has the same value in each feature"):
        table(tmp_path, {"x": [3] * 40, "c": ["a"] * 40})
