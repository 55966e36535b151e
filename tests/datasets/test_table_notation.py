"""Notations of numbers: those of programs and of the settings are read, others are rejected with advice."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.datasets.made import (
    opened,
    table,
)
from workflow_lib.datasets._notation import name_of, other_notation
from workflow_lib.errors import DataError


@pytest.mark.parametrize(
    "text", ["3_10", "1_000", "0x10", "١٢", "1e5", "3E7", "12E1", "1,5", "1 000", "1.2.3", "+", "-", "e5", "1e", "५"]
)
def test_other_notations_are_texts(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=rf"column `n`: `{re.escape(text)}` is not a number, but `7` in line 2 is"):
        table(tmp_path, {"n": ["7", text] * 10})


def test_lots_with_an_underscore_are_categories(tmp_path: Path) -> None:
    lots = [f"{1 + row % 3}_{10 + row % 2}" for row in range(60)]
    assert table(tmp_path, {"lot": lots}).features[0].categories[2:] == tuple(sorted(set(lots)))


@pytest.mark.parametrize("text", ["1", "-1.5", "+2", ".5", "5.", "1e-05", "1E+10", "1.0E7", "-3e2", "007", "1e+308"])
def test_the_notation_of_programs_is_a_number(text: str) -> None:
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
def test_numbers_in_another_notation_are_rejected_unless_listed_as_names(
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
def test_numbers_in_the_notation_of_the_settings_are_read_exactly(
    tmp_path: Path, settings: dict[str, str], write: Callable[[float], str], name: str
) -> None:
    numbers = [round(row * 123.456 - 4e4, 3) for row in range(1, 400)]
    columns = {"x": [write(number) for number in numbers], "m": [write(float(row % 7)) for row in range(1, 400)]}
    with pytest.raises(DataError, match="`x`: .*(a number in another notation|numbers are written like)") as error:
        table(tmp_path, columns, name)
    for setting, mark in settings.items():
        assert f'data.params.{setting}: "{mark}"' in str(error.value)
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


def test_advice_names_every_notation_that_reads_a_number(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        table(tmp_path, {"n": [f"{row % 9 + 1},{row % 900 + 100}" for row in range(60)]})
    assert 'decimal: "," reads 1,100 as 1.100; data.params.thousands: "," reads 1,100 as 1100' in str(error.value)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_names_are_equal_by_value_with_a_decimal_comma(tmp_path: Path, name: str) -> None:
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


def test_decimal_and_thousands_marks_must_differ(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is already the decimal mark"):
        table(tmp_path, {"x": ["1"] * 40}, decimal=",", thousands=",")


def test_floats_that_programs_write_are_numbers(tmp_path: Path) -> None:
    table(tmp_path, {"n": [repr(1e17 + 16.0 * (row % 4)) for row in range(40)]})
    table(tmp_path, {"n": [repr(float(2**60 + 256 * (row % 4))) for row in range(40)]})
