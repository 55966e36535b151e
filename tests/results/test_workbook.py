"""A workbook of the runs has the values of runs.csv; a text is never a formula."""

from __future__ import annotations

import io

import openpyxl

from workflow_lib.results.workbook import workbook


def test_values_are_numbers_or_texts_and_a_text_that_begins_like_a_formula_stays_one() -> None:
    rows = [
        {"run": "=1+1", "accuracy": 0.1 + 0.2, "steps": 30, "id": 2**60 + 1},
        {"run": "a\x07b", "lr": float("nan"), "is exact": True},
    ]
    book = openpyxl.load_workbook(io.BytesIO(workbook({"runs": rows, "configurations": []})))
    assert book.sheetnames == ["runs", "configurations"]
    cells = list(book["runs"].iter_rows())
    assert [cell.value for cell in cells[0]] == ["run", "accuracy", "steps", "id", "lr", "is exact"]
    assert (cells[1][0].value, cells[1][0].data_type) == ("=1+1", "s")
    assert [cell.value for cell in cells[1][1:]] == [0.1 + 0.2, 30, str(2**60 + 1), None, None]
    assert [cell.value for cell in cells[2]] == ["a\ufffdb", None, None, None, "nan", True]
