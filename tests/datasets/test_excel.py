"""A workbook has the values of the same table as CSV; what a spreadsheet has changed or hides is rejected."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pytest

from tests.datasets.made import diabetes, inputs_of, prepared
from workflow_lib.datasets import table
from workflow_lib.errors import DataError

ROWS = [["x", "name", "y"], *([row / 4, f"n{row % 3}", ("no", "yes")[row % 2]] for row in range(20))]


def workbook(path: Path, change: Callable[[Any, Any], None] = lambda book, sheet: None) -> None:
    """Save a workbook with ROWS, after a change of it."""
    book = openpyxl.Workbook()
    sheet: Any = book.active
    for row in ROWS:
        sheet.append(row)
    change(book, sheet)
    book.save(path)


def put(**cells: Any) -> Callable[[Any, Any], None]:
    """Return a change that sets cells."""

    def change(book: Any, sheet: Any) -> None:
        for place, value in cells.items():
            sheet[place] = value

    return change


def look(folder: Path, **params: Any) -> None:
    table.look(table.Params(path="x.xlsx", target="y", **params), folder)


def test_the_inputs_are_those_of_the_same_table_as_csv(tmp_path: Path) -> None:
    frame = diabetes().assign(code=[f"00{row % 4}" for row in range(442)], is_old=lambda each: each["age"] > 50)
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_excel(tmp_path / "x.xlsx", index=False)
    settings = {"params": {"target": "target", "task": "regression", "categorical": ["code"]}}
    of_csv, of_excel = (prepared(tmp_path, "table", name, **settings) for name in ("x.csv", "x.xlsx"))
    assert of_csv.features == of_excel.features
    np.testing.assert_array_equal(inputs_of(of_csv, tmp_path), inputs_of(of_excel, tmp_path))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda book, sheet: sheet.merge_cells("A1:B1"), "cells A1:B1 are merged"),
        (lambda book, sheet: setattr(sheet.row_dimensions[5], "hidden", True), "row 5 is hidden"),
        (lambda book, sheet: setattr(sheet.column_dimensions["B"], "hidden", True), "column B is hidden"),
        (lambda book, sheet: book.create_sheet("more").append([1]), "set data.params.sheet to one of: Sheet, more"),
        (put(A4="=1+1"), "cell A4 is a formula without a saved value"),
        (put(A4="#N/A"), "cell A4 is the error #N/A"),
        (put(A4=datetime(2026, 2, 1)), "cell A4: a date among other values of column `x`"),
        (put(A4="12"), "cell A4: '12' is stored as text, and A2 of the same column `x` as a number"),
        (put(A4=1234567890123456), "cell A4: 1234567890123456 has more than the 15 digits"),
        (put(D4=1.0), "cell D1 names no column"),
        (put(A1=datetime(2026, 2, 1)), "cell A1 is a date, and should be the name of a column"),
        (put(D1="x"), "2 columns are named `x`"),
    ],
)
def test_what_a_spreadsheet_changes_or_hides_is_rejected_with_its_cell(
    tmp_path: Path, change: Callable[[Any, Any], None], told: str
) -> None:
    workbook(tmp_path / "x.xlsx", change)
    with pytest.raises(DataError) as rejected:
        look(tmp_path)
    assert told in str(rejected.value)


def test_a_sheet_is_chosen_by_its_name_and_dates_are_no_inputs(tmp_path: Path) -> None:
    workbook(tmp_path / "x.xlsx", lambda book, sheet: book.create_sheet("notes").append(["by hand"]))
    look(tmp_path, sheet="Sheet")
    with pytest.raises(DataError, match="has no sheet `Shet`"):
        look(tmp_path, sheet="Shet")
    pd.DataFrame({"day": [datetime(2026, 1, 1)] * 3, "y": list("aba")}).to_excel(tmp_path / "x.xlsx", index=False)
    with pytest.raises(DataError, match="column `day` has type date"):
        look(tmp_path)
    (tmp_path / "x.xlsx").write_bytes(b"\xd0\xcf\x11\xe0 of a password")
    with pytest.raises(DataError, match=r"not a readable \.xlsx file"):
        look(tmp_path)
    (tmp_path / "x.csv").write_text("x,y\n1,a\n")
    with pytest.raises(DataError, match="has no sheets"):
        table.look(table.Params(path="x.csv", target="y", sheet="a"), tmp_path)
