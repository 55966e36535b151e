"""Excel workbooks as tables. What a spreadsheet shows and what its cells hold can differ: such cells are rejected.

A column has numbers or texts, as in a Parquet file. A date is neither, and one among other values was probably made by
the spreadsheet; formulas count by the values that the spreadsheet has saved.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

from workflow_lib.datasets import _tables
from workflow_lib.datasets._notation import is_number
from workflow_lib.datasets._tables import Piece, Values
from workflow_lib.errors import DataError
from workflow_lib.shipped import how_to_install

SUFFIX = ".xlsx"
MOST_BYTES = 100_000_000  # a workbook needs some 50 times its size in memory
MOST_UNPACKED = 1_000_000_000  # a small file can contain far more than a workbook of its size
EXACT = 10**15  # a spreadsheet keeps 15 digits of a number
DATES = (date, time, timedelta)  # a datetime is a date


class ExcelTable:
    """The rows of one sheet below the first, which names the columns. The values are in memory."""

    def __init__(self, path: Path, decimal: str, sheet: str | None, setting: str) -> None:
        self.path = path
        shown, formulas = _sheets(path, sheet, setting)
        self._check_layout(shown, formulas)
        rows = list(shown.iter_rows())
        header = rows[0] if rows else ()
        used = [
            number
            for number in range(len(header))
            if header[number].value is not None or any(row[number].value is not None for row in rows[1:])
        ]
        self.columns = tuple(self._name(header[number]) for number in used)
        filled = [row for row in rows[1:] if any(cell.value is not None for cell in row)]
        self._places = [f"row {row[0].row}" for row in filled]
        self.unusable: dict[str, str] = {}
        self._values: dict[str, Values] = {}
        for name, number in zip(self.columns, used, strict=True):
            cells = [row[number] for row in filled]
            if cells and all(isinstance(cell.value, (*DATES, type(None))) for cell in cells) and _filled(cells):
                self.unusable[name] = "date"
            else:
                self._values[name] = self._read(name, cells, decimal)

    def scan(self, columns: Sequence[str]) -> Iterator[Piece]:
        size = _tables.PIECE_ROWS
        for start in range(0, len(self._places), size):
            yield self._piece(np.arange(start, min(start + size, len(self._places))), columns)

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> Iterator[Piece]:
        for start in range(0, len(rows), _tables.PIECE_ROWS):
            yield self._piece(rows[start : start + _tables.PIECE_ROWS], columns)

    def close(self) -> None:
        """Do nothing: the file is closed after it was read."""

    def _piece(self, rows: np.ndarray, columns: Sequence[str]) -> Piece:
        chosen = rows.tolist()
        values: Mapping[str, Values] = {
            name: column[rows] if isinstance(column, np.ndarray) else [column[row] for row in chosen]
            for name, column in ((name, self._values[name]) for name in columns)
        }
        return Piece(rows, [self._places[row] for row in chosen], values)

    def _check_layout(self, shown: Any, formulas: Any) -> None:
        """Raise DataError for what a reader of the sheet sees otherwise than a program."""
        if merged := sorted(map(str, shown.merged_cells.ranges)):
            raise self._error(
                f"cells {merged[0]} are merged; unmerge them, so that each row and column has its own value"
            )
        hidden = [number for number, row in shown.row_dimensions.items() if row.hidden and number <= shown.max_row]
        if hidden:
            raise self._error(f"row {min(hidden)} is hidden (by a filter?); show the hidden rows, or delete them")
        if columns := sorted(name for name, column in shown.column_dimensions.items() if column.hidden):
            raise self._error(f"column {columns[0]} is hidden; show the hidden columns, or delete them")
        for row in formulas.iter_rows():
            for cell in row:
                value = shown[cell.coordinate]
                if cell.data_type == "f" and value.value is None:
                    raise self._error(
                        f"cell {cell.coordinate} is a formula without a saved value; open the file in a spreadsheet and"
                        " save it, or replace formulas by their values"
                    )
                if value.data_type == "e":
                    raise self._error(
                        f"cell {cell.coordinate} is the error {value.value}; correct it, or leave it empty"
                    )

    def _name(self, cell: Any) -> str:
        if cell.value is None:
            raise self._error(
                f"cell {cell.coordinate} names no column, and there are values below; the first row names them"
            )
        if isinstance(cell.value, DATES):
            raise self._error(f"cell {cell.coordinate} is a date, and should be the name of a column; make it a text")
        return _text(cell.value, ".").strip()

    def _read(self, name: str, cells: Sequence[Any], decimal: str) -> Values:
        filled = _filled(cells)
        for cell in filled:
            if isinstance(cell.value, DATES):
                raise self._error(
                    f"cell {cell.coordinate}: a date among other values of column `{name}`; spreadsheets turn"
                    " texts such as 1-2 into dates: enter it as text"
                )
            if isinstance(cell.value, int | float) and float(cell.value).is_integer() and abs(cell.value) >= EXACT:
                raise self._error(
                    f"cell {cell.coordinate}: {cell.value} has more than the 15 digits that a spreadsheet keeps; store"
                    " such values as text"
                )
        numbers = [cell for cell in filled if not isinstance(cell.value, str | bool)]
        if len(numbers) == len(filled):
            return np.array([np.nan if cell.value is None else float(cell.value) for cell in cells], dtype=np.float64)
        if numbers and (
            texts := [cell for cell in filled if isinstance(cell.value, str) and is_number(cell.value.strip())]
        ):
            raise self._error(
                f"cell {texts[0].coordinate}: {texts[0].value!r} is stored as text, and {numbers[0].coordinate} of the"
                f" same column `{name}` as a number; give the column one format, and enter its values again"
            )
        return [None if cell.value is None else _text(cell.value, decimal).strip() for cell in cells]

    def _error(self, what: str) -> DataError:
        return DataError(f"{self.path}: {what}")


def _filled(cells: Sequence[Any]) -> list[Any]:
    return [cell for cell in cells if cell.value is not None]


def _text(value: Any, decimal: str) -> str:
    """Return the value as a CSV file has it; numbers have the decimal mark with which they are read again."""
    if isinstance(value, float):
        return (str(int(value)) if value.is_integer() else repr(value)).replace(".", decimal)
    return str(value)


def filled_sheets(path: Path) -> list[str]:
    """Return the names of the sheets that have a value, in their order."""
    return _filled_sheets(_books(path)[0])


def _sheets(path: Path, sheet: str | None, setting: str) -> tuple[Any, Any]:
    """Return the sheet with the values that the spreadsheet has saved, and with its formulas."""
    books = _books(path)
    filled = _filled_sheets(books[0])
    named = ", ".join(filled)
    if sheet is None and len(filled) > 1:
        raise DataError(
            f"{path}: has {len(filled)} sheets (data.params.{setting}); set data.params.sheet to one of: {named}"
        )
    chosen = sheet or (filled[0] if filled else books[0].worksheets[0].title)
    if chosen not in [found.title for found in books[0].worksheets]:
        raise DataError(f"{path}: has no sheet `{chosen}` (data.params.sheet); there are: {named}")
    return books[0][chosen], books[1][chosen]


def _filled_sheets(book: Any) -> list[str]:
    return [found.title for found in book.worksheets if found.max_row > 1 or found["A1"].value is not None]


def _books(path: Path) -> list[Any]:
    """Return the workbook with the values that the spreadsheet has saved, and with its formulas."""
    try:
        import openpyxl
    except ModuleNotFoundError as error:
        raise DataError(f"{path}: Excel needs openpyxl: {how_to_install('excel')} (or use CSV)") from error
    if path.stat().st_size > MOST_BYTES:
        raise DataError(
            f"{path}: {path.stat().st_size / 1e6:.0f} MB are too much for a workbook; save it as CSV or Parquet"
        )
    try:
        with ZipFile(path) as parts:
            unpacked = sum(part.file_size for part in parts.infolist())
        if unpacked > MOST_UNPACKED:
            raise ValueError(f"it has {unpacked / 1e6:,.0f} MB of XML, more than {MOST_UNPACKED / 1e6:,.0f}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of styles and other parts that are not read
            return [openpyxl.load_workbook(path, data_only=is_shown) for is_shown in (True, False)]
    except Exception as error:  # of zip, XML, or a part that is missing
        raise DataError(
            f"{path}: not a readable .xlsx file ({type(error).__name__}: {error}); a file with a password, and an older"
            " .xls, must be saved as .xlsx without one"
        ) from error
