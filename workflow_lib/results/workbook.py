"""Tables as an Excel workbook (.xlsx); a text that begins with `=` stays a text."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import IO, Any

from workflow_lib.errors import UserError

UNREPRESENTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # characters that a workbook cannot hold
MOST_ROWS, MOST_TEXT = 1_048_575, 32_767  # of a sheet below its header, and of a cell
MOST_WHOLE = 1 << 53  # Excel keeps numbers as float64; a larger whole number becomes a text


class Workbook:
    """A workbook that is written row by row; every value is a number, a truth value or a text.

    `too_many` is what a sheet with too many rows is told after their number.
    """

    def __init__(self, too_many: str) -> None:
        import openpyxl

        self._book = openpyxl.Workbook(write_only=True)
        self._sheet: Any = None
        self._rows, self._too_many = 0, too_many

    def begin(self, title: str, names: Sequence[str]) -> None:
        """Begin a sheet with these columns."""
        self._sheet = self._book.create_sheet(title)
        self._sheet.freeze_panes = "A2"
        self._sheet.append([self._cell(name) for name in names])
        self._rows = 0

    def add(self, values: Sequence[Any]) -> None:
        """Add a row to the sheet. Raises UserError if it has too many."""
        self._rows += 1
        if self._rows > MOST_ROWS:
            raise UserError(f"more than {MOST_ROWS:,} rows are too many for a sheet of Excel; {self._too_many}")
        self._sheet.append([self._cell(value) for value in values])

    def save(self, file: IO[bytes]) -> None:
        """Write the workbook."""
        self._book.save(file)

    def _cell(self, value: Any) -> Any:
        from openpyxl.cell import WriteOnlyCell

        if value is None or (isinstance(value, int) and abs(value) <= MOST_WHOLE):
            return value
        is_number = isinstance(value, float) and math.isfinite(value)
        text = repr(value) if is_number else UNREPRESENTABLE.sub("\N{REPLACEMENT CHARACTER}", str(value))[:MOST_TEXT]
        made = WriteOnlyCell(self._sheet, text)
        # openpyxl writes 16 digits of a number, and takes a text that begins with `=` for a formula
        made.data_type = "n" if is_number else "s"
        return made


def workbook(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Return an .xlsx file with a sheet for each table. Raises UserError for more rows than a sheet can have."""
    book = Workbook("runs.csv has them all (report.excel)")
    for title, rows in tables.items():
        names = list(dict.fromkeys(name for row in rows for name in row))
        book.begin(title, names)
        for row in rows:
            book.add([row.get(name) for name in names])
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()
