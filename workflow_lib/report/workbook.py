"""The tables of a report as an Excel workbook; a text that begins with `=` stays a text."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from workflow_lib.errors import UserError

UNREPRESENTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # characters that a workbook cannot hold
MOST_ROWS, MOST_TEXT = 1_048_575, 32_767  # of a sheet below its header, and of a cell


def workbook(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Return an .xlsx file with a sheet for each table: every value is a number, a truth value or a text.

    Raises UserError for more rows than a sheet can have.
    """
    import openpyxl
    from openpyxl.cell import WriteOnlyCell

    book = openpyxl.Workbook(write_only=True)
    for title, rows in tables.items():
        if len(rows) > MOST_ROWS:
            raise UserError(f"report.excel: {len(rows)} rows are too many for a sheet; runs.csv has them all")
        sheet: Any = book.create_sheet(title)
        sheet.freeze_panes = "A2"
        names = list(dict.fromkeys(name for row in rows for name in row))

        def cell(value: Any, sheet: Any = sheet) -> Any:
            if value is None or (isinstance(value, int | float) and math.isfinite(value)):
                return value
            text = UNREPRESENTABLE.sub("\N{REPLACEMENT CHARACTER}", str(value))[:MOST_TEXT]
            made = WriteOnlyCell(sheet, text)
            made.data_type = "s"  # openpyxl takes a text that begins with `=` for a formula
            return made

        sheet.append([cell(name) for name in names])
        for row in rows:
            sheet.append([cell(row.get(name)) for name in names])
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()
