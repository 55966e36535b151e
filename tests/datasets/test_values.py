"""Values mean what they mean to the person who wrote them, or are rejected; nothing is merged or guessed silently."""

from __future__ import annotations

import datetime
import logging
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from workflow_lib import config, plugins
from workflow_lib.data import SPLITS, Manifest, Source, from_arrays, prepare
from workflow_lib.data.shard import read_shard
from workflow_lib.data.source import check_source
from workflow_lib.data.splits import assign
from workflow_lib.datasets._notation import name_of, other_notation
from workflow_lib.errors import DataError


@contextmanager
def opened(name: str, path: Path, **params: Any) -> Iterator[Source]:
    plugin = plugins.load("data", name)
    with closing(plugin.open_source(plugin.Params(path=path, **params), path.parent)) as source:
        yield source


def table(folder: Path, columns: dict[str, list[Any]], name: str = "x.csv", **params: Any) -> Source:
    """A table of these columns, and of `x`, which varies, and `y`, two classes, unless they are given."""
    rows = max(map(len, columns.values()))
    labels = [("no", "yes")[row % 2] for row in range(rows)]
    given = columns if "x" in columns else columns | {"x": [row * 37 % 101 / 4 for row in range(rows)]}
    given = given if "y" in given else given | {"y": labels}
    if name.endswith(".parquet"):
        pd.DataFrame(given).to_parquet(folder / name)
    else:
        quoted = [[f'"{value}"' for value in of_column] for of_column in given.values()]
        lines = [",".join(given), *(",".join(line) for line in zip(*quoted, strict=True))]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    with opened("table", folder / name, **({"target": "y"} | params)) as source:
        return source


def prepared(folder: Path, name: str, path: str, **settings: Any) -> Manifest:
    params = {"path": path} | settings.pop("params", {})
    return prepare({"name": name, "params": params} | settings, folder, folder / "work")


def inputs_of(manifest: Manifest, folder: Path, split: str = "train") -> np.ndarray:
    found = [folder / "work" / "data" / manifest.store / one.name for one in manifest.shards if one.split == split]
    return np.concatenate([stored.inputs for path in found if (stored := read_shard(path))])


# -- numbers --------------------------------------------------------------------------------------------------------

IDS = [2**60 + row % 4 for row in range(40)]


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_whole_numbers_of_any_size_are_names_as_they_are_written(tmp_path: Path, name: str) -> None:
    source = table(tmp_path, {"id": IDS}, name, categorical=("id",))
    assert source.features[0].categories[2:] == tuple(str(2**60 + number) for number in range(4))
    source = table(tmp_path, {"y": IDS}, name)
    assert source.classes == tuple(str(2**60 + number) for number in range(4))


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_whole_number_that_no_float_holds_is_refused_with_its_row(tmp_path: Path, name: str, task: str) -> None:
    with pytest.raises(
        DataError, match=f"(line 3|row 1), column `id`: float64 cannot represent the whole number {2**60 + 1}"
    ):
        table(tmp_path, {"id": IDS, "y": [row % 2 for row in range(40)]}, name, task=task)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
@pytest.mark.parametrize("start", [1_700_000_000_000, -1_700_000_000_000, 20_260_101, 10**15, 1_700_000_000.25])
def test_numbers_far_from_zero_are_told_apart(tmp_path: Path, name: str, start: float) -> None:
    """A shift of a column changes nothing that a model sees."""
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


def test_numbers_that_float32_merges_are_refused(tmp_path: Path) -> None:
    """Time stamps with a 0 for a missing one leave no centre to subtract."""
    times = [0, *(1_700_000_000_000 + row for row in range(39))]
    with pytest.raises(DataError, match=r"column `t`: 1700000000000.0 and 1700000000001.0 are equal in float32"):
        table(tmp_path, {"t": times})
    assert table(tmp_path, {"t": times}, features=("x",)).features[0].name == "x"


def test_targets_that_float32_merges_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the targets 1700000000.0 and 1700000005.0 are equal in float32"):
        table(tmp_path, {"y": [1_700_000_000 + 5 * row for row in range(40)]}, task="regression")
    source = from_arrays(np.zeros((4, 1), np.float32), np.arange(4) + 2**40)
    with pytest.raises(DataError, match="the targets 1099511627776 and 1099511627777 of `train` are equal in float32"):
        assign(source, config.Data())


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint32, np.float64])
def test_images_whose_values_float32_merges_are_refused(tmp_path: Path, kind: type) -> None:
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


@pytest.mark.parametrize(
    "text", ["3_10", "1_000", "0x10", "١٢", "1e5", "3E7", "12E1", "1,5", "1 000", "1.2.3", "+", "-", "e5", "1e", "५"]
)
def test_what_programs_do_not_write_is_no_number(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=rf"column `n`: `{re.escape(text)}` is not a number, but `7` in line 2 is"):
        table(tmp_path, {"n": ["7", text] * 10})


def test_lots_with_an_underscore_are_categories(tmp_path: Path) -> None:
    lots = [f"{1 + row % 3}_{10 + row % 2}" for row in range(60)]
    assert table(tmp_path, {"lot": lots}).features[0].categories[2:] == tuple(sorted(set(lots)))


@pytest.mark.parametrize("text", ["1", "-1.5", "+2", ".5", "5.", "1e-05", "1E+10", "1.0E7", "-3e2", "007", "1e+308"])
def test_what_programs_write_is_a_number(text: str) -> None:
    from workflow_lib.datasets._notation import is_number

    assert is_number(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [("1", "1"), ("1.0", "1"), ("+1", "1"), ("1.50", "1.5"), (".5", "0.5"), ("-0.0", "0"), ("1e+3", "1000"),
     ("1.5e-7", "0.00000015"), ("007", "007"), ("3E7", "3E7"), ("1.", "1"), ("a.", "a."), ("1_0", "1_0"), (".", "."),
     (str(2**70 + 1), str(2**70 + 1)), ("0.1234567890123456789", "0.1234567890123456789")],
)  # fmt: skip
def test_equal_numbers_have_one_name(text: str, name: str) -> None:
    assert name_of(text) == name


OTHER_NOTATION: dict[str, Callable[[float], str]] = {
    "decimal comma": lambda v: f"{v:.3f}".replace(".", ","),
    "thousands": lambda v: f"{1000 + 1000 * v:,.0f}",
    "thousands and decimals": lambda v: f"{1000 + 1000 * v:,.2f}",
    "German thousands": lambda v: f"{1000 + 1000 * v:,.2f}".translate(str.maketrans(",.", ".,")),
    "Swiss thousands": lambda v: f"{1000 + 1000 * v:,.2f}".replace(",", "'"),
    "a space that does not break": lambda v: f"{1000 + 1000 * v:,.0f}".replace(",", "\N{NO-BREAK SPACE}"),
    "a narrow space": lambda v: f"{1000 + 1000 * v:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}"),
    "dollars": lambda v: f"$ {v:.2f}",
    "negative dollars": lambda v: f"-${v:.2f}",
    "euros": lambda v: f"{v:.2f} €".replace(".", ","),
    "a code of a currency": lambda v: f"USD {v:.2f}",
    "per cent": lambda v: f"{v:.1f}%",
    "per cent, a space": lambda v: f"{v:.1f} %",
    "accounting": lambda v: f"({1 + v:.2f})",
    "minus behind": lambda v: f"{1 + v:.2f}-",
    "a typographic minus": lambda v: f"\N{MINUS SIGN}{1 + v:.2f}",
    "Arabic digits": lambda v: f"{int(10 * v)}".translate(str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")),
    "full width digits": lambda v: f"{1 + int(10 * v)}".translate(str.maketrans("0123456789", "０１２３４５６７８９")),
    "Fortran": lambda v: f"{v:.3f}D+02",
    "bare exponents": lambda v: f"{1 + int(10 * v)}E{int(v) % 7}",
    "a unit": lambda v: f"{v:.2f} kg",
    "a unit at once": lambda v: f"{v:.2f}mg/l",
    "ISO dates": lambda v: f"{datetime.date(2020, 1, 1) + datetime.timedelta(days=int(10 * v))}",
    "American dates": lambda v: f"{1 + int(v)}/{1 + int(7 * v) % 28}/2024",
    "German dates": lambda v: f"{1 + int(7 * v) % 28}.{1 + int(v)}.2024",
    "dates with a month": lambda v: f"{1 + int(7 * v) % 28} Jan 2024",
    "moments": lambda v: f"2024-01-{1 + int(7 * v) % 28:02d}T12:30:00Z",
    "times of day": lambda v: f"{int(v):02d}:{int(7 * v) % 60:02d}",
}


@pytest.mark.parametrize("write", OTHER_NOTATION.values(), ids=OTHER_NOTATION.keys())
@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_numbers_in_another_notation_are_refused_unless_they_are_said_to_be_names(
    tmp_path: Path, write: Callable[[float], str], name: str
) -> None:
    values = [write(row % 150 / 15) for row in range(400)]
    with pytest.raises(DataError, match="column `n`: .*(line 2|row 0)"):
        table(tmp_path, {"n": values}, name)
    assert table(tmp_path, {"n": values}, name, categorical=("n",)).features[0].categories
    if "unit" not in write(1.0) and other_notation(values[1]):
        with pytest.raises(DataError, match="the target .* is a (number|date)"):
            table(tmp_path, {"y": values}, name)


MARKED: dict[str, tuple[dict[str, str], Callable[[float], str]]] = {
    "decimal comma": ({"decimal": ","}, lambda v: f"{v!r}".replace(".", ",")),
    "thousands": ({"thousands": ","}, lambda v: f"{v:,.3f}"),
    "German": ({"decimal": ",", "thousands": "."}, lambda v: f"{v:,.3f}".translate(str.maketrans(",.", ".,"))),
    "French": ({"decimal": ",", "thousands": " "}, lambda v: f"{v:,.3f}".translate(str.maketrans(",.", "\u202f,"))),
    "spaces": ({"thousands": " "}, lambda v: f"{v:,.3f}".replace(",", "\u00a0")),
    "Swiss": ({"thousands": "'"}, lambda v: f"{v:,.3f}".replace(",", "\u2019")),
}


@pytest.mark.parametrize(("settings", "write"), MARKED.values(), ids=MARKED.keys())
@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_numbers_in_a_notation_that_is_said_are_read_exactly(
    tmp_path: Path, settings: dict[str, str], write: Callable[[float], str], name: str
) -> None:
    numbers = [round(row * 123.456 - 4e4, 3) for row in range(1, 400)]
    columns = {"x": [write(number) for number in numbers], "m": [write(float(row % 7)) for row in range(1, 400)]}
    with pytest.raises(DataError, match="`x`: .*(a number in another notation|numbers are written like)") as told:
        table(tmp_path, columns, name)
    for setting, mark in settings.items():
        assert f'data.params.{setting}: "{mark}"' in str(told.value)
    with opened("table", tmp_path / name, target="y", **settings) as source:
        assert [feature.categories for feature in source.features] == [(), ()]
        rows = source.read("train", np.arange(399))
    assert (rows[:, 0] == np.array(numbers, np.float32)).all()
    assert (rows[:, 1] == np.arange(1, 400) % 7).all()


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"decimal": ","}, "1.5"), ({"decimal": ","}, "1.234,5"), ({"decimal": ","}, "1,2,3"), ({"decimal": ","}, "3_1,5"),
     ({"thousands": ","}, "12,34"), ({"thousands": ","}, "1234,567"), ({"thousands": ","}, "0,123"),
     ({"thousands": ","}, "1,234,5"), ({"thousands": "."}, "1.5"), ({"decimal": ",", "thousands": "."}, "1.5"),
     ({"decimal": ",", "thousands": "."}, "1,234.5"), ({"thousands": " "}, "1  234"), ({"decimal": ","}, "1,5E7x")],
)  # fmt: skip
def test_a_number_in_yet_another_notation_is_rejected_beside_numbers(
    tmp_path: Path, settings: dict[str, str], text: str
) -> None:
    settings = {"decimal": ","} | settings if settings.get("thousands") == "." else settings
    with pytest.raises(DataError, match=rf"line 7, column `n`: `{re.escape(text)}` is not a number"):
        table(tmp_path, {"n": ["1", "2", "3", "4", "5", text, *map(str, range(40))], "x": [*range(46)]}, **settings)


def test_a_number_that_two_notations_read_is_shown_in_both(tmp_path: Path) -> None:
    with pytest.raises(DataError) as told:
        table(tmp_path, {"n": [f"{row % 9 + 1},{row % 900 + 100}" for row in range(60)]})
    assert 'decimal: "," reads 1,100 as 1.100; data.params.thousands: "," reads 1,100 as 1100' in str(told.value)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_numbers_near_zero_are_kept_and_told(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
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
def test_a_number_that_float64_takes_for_zero_is_rejected(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(DataError, match=f"(line 4|row 2), column `x`: {text} is too close to 0"):
        table(tmp_path, {"x": ["1", "0e-5", text, "0.000", *map(str, range(36))]}, name)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_a_class_that_is_written_like_a_missing_value_is_rejected_with_what_to_do(tmp_path: Path, name: str) -> None:
    labels = {"y": ["NA", "EU", "AS", "EU"] * 10}
    with pytest.raises(DataError, match="the target is missing; .* if `NA` is a class, remove it from data.params.mis"):
        table(tmp_path, labels, name, categorical=("y",))
    assert table(tmp_path, labels, name, categorical=("y",), missing=("",)).classes == ("AS", "EU", "NA")
    with pytest.raises(DataError, match="the target is missing; remove the row, or fill it$"):
        table(tmp_path, {"y": [None if name == "x.parquet" else "", "EU", "AS", "EU"] * 10}, name)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_names_and_classes_are_equal_by_value_with_a_decimal_comma_too(tmp_path: Path, name: str) -> None:
    columns = {"c": ["1,50", "1,5", "1.5", "+2"] * 10, "y": ["1,0", "1", "2", "10"] * 10, "x": [*range(40)]}
    source = table(tmp_path, columns, name, decimal=",", categorical=("c",))
    assert source.features[0].categories[2:] == ("1,5", "1.5", "2")
    assert source.classes == ("1", "2", "10")


def test_columns_of_numbers_in_parquet_keep_their_values_with_a_decimal_comma(tmp_path: Path) -> None:
    decimals = [Decimal(row) / 8 for row in range(40)]
    columns = {"d": decimals, "f": [row / 8 for row in range(40)], "i": [2**53 + 2 * row for row in range(40)],
               "t": [f"{row / 8}".replace(".", ",") for row in range(40)]}  # fmt: skip
    path = tmp_path / "numbers.parquet"
    pd.DataFrame({**columns, "y": ["a", "b"] * 20}).to_parquet(path)
    with opened("table", path, target="y", decimal=",") as source:
        rows = source.read("train", np.arange(40))
    assert (rows[:, [0, 1, 3]] == np.array(columns["f"], np.float32)[:, None]).all()


def test_one_mark_cannot_mean_two_things(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is already the decimal mark"):
        table(tmp_path, {"x": ["1"] * 40}, decimal=",", thousands=",")


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


def test_a_text_of_its_own_in_most_rows_is_refused_unless_it_is_listed(tmp_path: Path) -> None:
    names = [f"Mr. {chr(97 + row % 26)}{row}" if row % 5 else "unknown" for row in range(60)]
    with pytest.raises(DataError, match="column `n`: 48 of 60 rows have a text that no other row has"):
        table(tmp_path, {"n": names})
    assert len(table(tmp_path, {"n": names}, categorical=("n",)).features[0].categories) == 51
    with pytest.raises(DataError, match="column `y`: 48 of 60 rows have a target that no other row has"):
        table(tmp_path, {"y": names})


def test_a_column_of_names_of_splits_is_asked_about(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column `part`: its values are names of splits; set data.params.split: part"):
        table(tmp_path, {"part": ["Train", "train", "test", "Train"] * 10})


def test_a_whole_number_that_no_float_holds_is_refused_however_it_is_written(tmp_path: Path) -> None:
    for text in ("9007199254740993", "9007199254740993.0", "+9007199254740993.00", "-9007199254740993"):
        with pytest.raises(DataError, match=f"float64 cannot represent the whole number {re.escape(text)} "):
            table(tmp_path, {"n": ["1", text] * 20})
    table(tmp_path, {"n": ["9007199254740992", "9007199254740994"] * 20})


def test_floats_that_programs_write_are_numbers(tmp_path: Path) -> None:
    table(tmp_path, {"n": [repr(1e17 + 16.0 * (row % 4)) for row in range(40)]})
    table(tmp_path, {"n": [repr(float(2**60 + 256 * (row % 4))) for row in range(40)]})


# -- labels ---------------------------------------------------------------------------------------------------------


def test_labels_are_equal_by_value(tmp_path: Path) -> None:
    mixed = ["1", "0", "+1", "0"] * 10 + ["1.0", "0.0", "1.00", "-0"] * 10
    source = table(tmp_path, {"y": mixed})
    assert source.classes == ("0", "1")
    assert source.targets["train"].tolist() == [1, 0] * 40


@pytest.mark.parametrize(
    ("one", "other"),
    [("Yes", "yes"), ("Yes", "YES"), ("01", "1"), ("a  b", "a b"), ("caf\u00e9", "cafe\u0301"), ("A", "\uff21")],
)
def test_labels_that_differ_in_spelling_alone_are_asked_about(tmp_path: Path, one: str, other: str) -> None:
    labels = [one, "x"] * 10 + [other, "x"] * 10
    with pytest.raises(DataError, match=f"line 22, column `y`: the target `{other}` is `{one}` in line 2: use one sp"):
        table(tmp_path, {"y": labels})
    assert len(table(tmp_path, {"y": labels}, categorical=("y",)).classes) == 3


@pytest.mark.parametrize("text", ["None", "NAN", "#N/A", "NULL", "<NA>", "n/a", "?", "."])
def test_a_label_that_looks_missing_is_asked_about(tmp_path: Path, text: str) -> None:
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
def test_labels_that_are_numbered_in_another_way_are_refused_with_what_to_do(
    tmp_path: Path, labels: np.ndarray, message: str, names: tuple[str, ...] | None
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4), np.uint8)
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels)
    with pytest.raises(DataError, match=message), opened("npz", tmp_path / "x.npz", classes=names):
        pass
    with pytest.raises(DataError, match=message):
        from_arrays(images[:, None], labels, classes=names or "abc")


@pytest.mark.parametrize("key", ["validation", "Test", "valid"])
def test_a_split_of_another_name_in_npz_is_refused(tmp_path: Path, key: str) -> None:
    images, labels = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 2
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels, **{f"{key}_images": images})
    with (
        pytest.raises(DataError, match=f"key `{key}_images` belongs to no sp"),
        opened("npz", tmp_path / "x.npz"),
    ):
        pass


# -- what the log says ----------------------------------------------------------------------------------------------


def test_each_column_is_told_by_its_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns: dict[str, list[Any]] = {"n": [1, 2.5, "", 4] * 10, "c": ["red", "blue"] * 20}
    with caplog.at_level(logging.INFO):
        table(tmp_path, columns)
    told = [
        "`y`: target, 2 classes (no, yes)",
        "`n`: number, 1 to 4, some missing",
        "`c`: category, 2 different (blue, red)",
    ]
    assert all(any(line in message for message in caplog.messages) for line in told)
    plugin = plugins.load("data", "table")
    lines = plugin.describe(plugin.Params(path=tmp_path / "x.csv", target="y"), Path("/"))
    assert lines[:1] == told[:1]
    assert {*told} <= {*lines}


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
def test_a_doubtful_column_is_told(
    tmp_path: Path, values: list[Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    table(tmp_path, {"c": values})
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert re.search(message, told)
    assert "column `c`" in told


def test_a_table_that_never_varies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every row has the same value in each feature"):
        table(tmp_path, {"x": [3] * 40, "c": ["a"] * 40})


# -- copies, and inputs that say nothing ----------------------------------------------------------------------------


def arrays(folder: Path, inputs: np.ndarray, labels: np.ndarray) -> tuple[str, dict[str, Any]]:
    np.savez(folder / "x.npz", train_images=inputs, train_labels=labels)
    return "npz", {"path": "x.npz"}


def rows(folder: Path, inputs: np.ndarray, labels: np.ndarray) -> tuple[str, dict[str, Any]]:
    lines = [
        ",".join(map(str, [*line.reshape(-1).tolist(), label])) for line, label in zip(inputs, labels, strict=True)
    ]
    names = [f"p{number}" for number in range(inputs[0].size)]
    (folder / "x.csv").write_text("\n".join([",".join([*names, "y"]), *lines]) + "\n")
    return "table", {"path": "x.csv", "target": "y"}


def files(folder: Path, inputs: np.ndarray, labels: np.ndarray) -> tuple[str, dict[str, Any]]:
    for number, (pixels, label) in enumerate(zip(inputs, labels, strict=True)):
        (folder / "x" / f"class {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "x" / f"class {label}" / f"{number:03d}.png")
    return "image_folder", {"path": "x"}


WRITERS = pytest.mark.parametrize("write", [arrays, rows, files])
Writer = Callable[[Path, np.ndarray, np.ndarray], tuple[str, dict[str, Any]]]


@WRITERS
def test_copies_in_drawn_splits_are_told(tmp_path: Path, write: Writer, caplog: pytest.LogCaptureFixture) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (60, 4, 4), np.uint8)
    name, params = write(tmp_path, np.repeat(pictures[:10], 6, axis=0), np.repeat(np.arange(10) % 2, 6))
    prepare({"name": name, "params": params}, tmp_path, tmp_path / "work")
    told = [message for message in caplog.messages if "copies of samples of train" in message]
    assert [message.split(" copies")[0] for message in told] == [
        "9 of 9 samples of val are",
        "12 of 12 samples of test are",
    ]
    first, other = told[0].split("the first: ")[1].split("): ")[0].split(" = ")
    assert first != other
    if write is files:
        assert Path(first).read_bytes() == Path(other).read_bytes()
    caplog.clear()
    (tmp_path / "other").mkdir()
    name, params = write(tmp_path / "other", pictures, np.arange(60) % 2)
    prepare({"name": name, "params": params}, tmp_path / "other", tmp_path / "other" / "work")
    assert not [message for message in caplog.messages if "copies" in message or "different targets" in message]


@WRITERS
def test_equal_inputs_with_two_labels_are_told(tmp_path: Path, write: Writer, caplog: pytest.LogCaptureFixture) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (60, 4, 4), np.uint8)
    pictures[41] = pictures[10]
    name, params = write(tmp_path, pictures, np.arange(60) % 2)
    prepare({"name": name, "params": params}, tmp_path, tmp_path / "work")
    (told,) = [message for message in caplog.messages if "different targets" in message]
    assert told.startswith(
        "2 of 60 samples have inputs that occur with different targets (1 different input; the first: "
    )


def test_copies_of_texts_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(30):
        text = bytes(np.random.default_rng(number % 10).integers(97, 123, 600, np.uint8))
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / f"{number:02d}.txt").write_bytes(text)
    prepared(tmp_path, "text", "x", params={"context": 16, "split_by": "file"})
    assert [message for message in caplog.messages if "samples of test are copies of samples of train" in message]


@WRITERS
def test_inputs_that_are_all_the_same_are_refused(tmp_path: Path, write: Writer) -> None:
    name, params = write(tmp_path, np.full((60, 4, 4), 9, np.uint8), np.arange(60) % 2)
    with pytest.raises(DataError, match="all .* inputs of train are the same|every row has the same value"):
        prepare({"name": name, "params": params}, tmp_path, tmp_path / "work")
    assert not list((tmp_path / "work").rglob("manifest.json"))


def test_a_channel_that_never_varies_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3), np.uint8)
    images[..., 1] = 7
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=np.arange(60) % 2)
    prepared(tmp_path, "npz", "x.npz")
    assert "channels 1 of the inputs never vary in train" in caplog.text


def test_targets_that_never_vary_are_refused() -> None:
    source = from_arrays(np.arange(60, dtype=np.float32)[:, None], np.full(60, 3.5))
    with pytest.raises(DataError, match=r"every target of train is 3.5: nothing to learn"):
        assign(source, config.Data())


def test_two_classes_of_one_name_are_refused() -> None:
    source = from_arrays(np.arange(60, dtype=np.float32)[:, None], np.arange(60) % 3, classes=["a", "b", "a"])
    with pytest.raises(DataError, match="Source.classes has `a` more than once"):
        check_source(source)


def test_what_transparency_hides_on_one_background_shows_on_the_other(tmp_path: Path) -> None:
    for kind in range(2):
        for number in range(12):
            pixels = np.zeros((16, 16, 4), np.uint8)
            pixels[2:5, 2 : 5 + number % 3, 3] = 255
            pixels[8:14, 8:14, 3] = 255 * kind
            (tmp_path / "x" / "ab"[kind]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "x" / "ab"[kind] / f"{number}.png")
    with pytest.raises(DataError, match="all 15 inputs of train are the same"):
        prepared(tmp_path, "image_folder", "x")
    manifest = prepared(tmp_path, "image_folder", "x", params={"background": "white"})
    assert len(np.unique(inputs_of(manifest, tmp_path), axis=0)) == 6


# -- folders and files ----------------------------------------------------------------------------------------------


def picture_in(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(path)


@pytest.mark.parametrize(
    "names", [("Training", "Testing"), ("Train", "Test"), ("training_set", "test_set"), ("TRAIN", "VALID", "TEST"),
              ("trainset", "validation"), ("train2017", "val2017"), ("dev", "Training-Data")]
)  # fmt: skip
def test_folders_that_are_splits_in_other_words_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        for kind in ("cat", "dog"):
            picture_in(tmp_path / "x" / name / kind / "1.png", number)
    with pytest.raises(DataError, match="x: .* look like splits; rename them to train, val, test"):
        with opened("image_folder", tmp_path / "x"):
            pass
    for path in (tmp_path / "x").rglob("*.png"):
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(DataError, match="look like splits"), opened("text", tmp_path / "x"):
        pass


@pytest.mark.parametrize("names", [("images", "annotations"), ("Images", "masks"), ("img", "GT"), ("images", "labels")])
@pytest.mark.parametrize("split", ["", "train"])
def test_folders_of_annotations_are_no_classes(tmp_path: Path, names: tuple[str, ...], split: str) -> None:
    for number, name in enumerate(names):
        picture_in(tmp_path / "x" / split / name / "1.png", number)
    with pytest.raises(DataError, match="look like images and their annotations, not like classes"):
        with opened("image_folder", tmp_path / "x"):
            pass


def test_classes_that_have_the_same_folders_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, name in enumerate(("fold1", "fold2")):
        for kind in ("cat", "dog"):
            picture_in(tmp_path / "x" / name / kind / "1.png", number)
    with opened("image_folder", tmp_path / "x") as source:
        assert source.classes == ("fold1", "fold2")
    assert "have the same sub-folders (cat, dog) and no images directly in them" in caplog.text
    caplog.clear()
    picture_in(tmp_path / "x" / "fold1" / "2.png", 5)
    with opened("image_folder", tmp_path / "x"):
        assert caplog.text == ""


def test_folders_of_classes_that_differ_in_case_alone_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(("Cat", "cat", "dog")):
        picture_in(tmp_path / "x" / name / "1.png", number)
    with opened("image_folder", tmp_path / "x") as source:
        assert len(source.classes) == 3
    assert "`Cat` and `cat` are two classes" in caplog.text


def png(path: Path, bits: int, colours: int) -> None:
    """A PNG of 8 x 8 pixels: grey (0), RGB (2), grey with alpha (4) or RGB with alpha (6)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + bytes(range(8 * {0: 1, 2: 3, 4: 2, 6: 4}[colours] * bits // 8))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, colours, 0, 0, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(8 * row)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("colours", [0, 2, 4, 6])
def test_a_png_of_16_bits_is_refused_whatever_its_colours(tmp_path: Path, colours: int) -> None:
    for bits in (8, 16):
        for kind in "ab":
            png(tmp_path / str(bits) / kind / "1.png", bits, colours)
    with opened("image_folder", tmp_path / "8") as source:
        assert source.read("train", np.arange(2)).shape == (2, 3, 8, 8)
    with pytest.raises(DataError, match="a/1.png: .*has 16 bits a value"), opened("image_folder", tmp_path / "16"):
        pass


def test_an_animation_is_refused(tmp_path: Path) -> None:
    picture_in(tmp_path / "x" / "a" / "1.png", 1)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    (tmp_path / "x" / "b").mkdir()
    frames[0].save(tmp_path / "x" / "b" / "1.png", save_all=True, append_images=frames[1:])
    with (
        pytest.raises(DataError, match="b/1.png: .*an animation of 2 ima"),
        opened("image_folder", tmp_path / "x"),
    ):
        pass


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_byte_that_is_the_end_of_texts_elsewhere_is_one_of_the_text(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x").mkdir()
    texts = [f"{number} L'Ha\u00ff-les-Roses ".encode(encoding) * 40 for number in range(8)]
    for number, text in enumerate(texts):
        (tmp_path / "x" / f"{number}.txt").write_bytes(text)
    with opened("text", tmp_path / "x", context=16) as source:
        windows = source.read("train", np.arange(len(source.targets["train"])))
    end = source.vocabulary.index("<end>")
    assert len(source.vocabulary) == 257
    assert end == 256
    assert (windows == end).any(axis=1).sum() == pytest.approx(8, abs=8)
    assert (windows == 255).any()
    stream = b"".join(texts)
    first = windows[:10, :-1].reshape(-1).tolist()
    assert bytes(first) == stream[: len(first)]


# -- rare classes ---------------------------------------------------------------------------------------------------


def few(folder: Path) -> dict[str, Any]:
    """Of 4 classes one has a single sample, one has two."""
    labels = ["a"] * 60 + ["b"] * 40 + ["c"] * 2 + ["d"]
    values = np.random.default_rng(0).normal(size=(len(labels), 2)).round(3).tolist()
    lines = [f"{x},{z},{label}" for (x, z), label in zip(values, labels, strict=True)]
    (folder / "x.csv").write_text("\n".join(["x,z,y", *lines]) + "\n")
    return {"name": "table", "params": {"path": "x.csv", "target": "y"}}


@pytest.mark.parametrize("seed", range(6))
def test_train_has_every_class_and_a_split_that_lacks_one_is_told(
    tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = prepare(few(tmp_path) | {"split_seed": seed}, tmp_path, tmp_path / "work")
    assert all(manifest.splits["train"].per_class)
    assert sum(split.samples for split in manifest.splits.values()) == 103
    told = [message for message in caplog.messages if "has no sample of class" in message]
    assert len(told) == 2
    assert "`d`" in told[0]
    assert "the val split" in told[0]
    assert "the test split" in told[1]


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
    """Also where categories are learnt again from what is left to train."""
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
