"""CSV and Parquet files, read in pieces of bounded memory: once from start to end, then any rows. Excel is beside."""

from __future__ import annotations

import csv
import difflib
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from workflow_lib.data import SPLITS
from workflow_lib.errors import DataError
from workflow_lib.files import in_utf8
from workflow_lib.shipped import how_to_install

PIECE_ROWS = 1024  # rows held at once
OTHER_DELIMITERS = {";": ";", "\t": "\\t", "|": "|"}  # each as it is written in YAML

# The values of a column: numbers, with NaN for missing ones, or texts, with None.
Values = np.ndarray | Sequence[str | None]


@dataclass(frozen=True)
class Piece:
    """Some rows: their numbers, their places in the file for messages (`line 7`), and their values by column."""

    rows: np.ndarray
    places: Sequence[str]
    values: Mapping[str, Values]


class Table(Protocol):
    """A file with columns."""

    path: Path
    columns: tuple[str, ...]

    @property
    def unusable(self) -> Mapping[str, str]:
        """The type of each column that has neither numbers nor texts, by name."""

    def scan(self, columns: Sequence[str]) -> Iterator[Piece]:
        """Yield all rows of the file. A complete scan must precede `take`."""

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> Iterator[Piece]:
        """Yield these rows, which must be ascending. Several threads may call it at once."""

    def close(self) -> None:
        """Close the file."""


def open_table(
    path: Path, delimiter: str, decimal: str = ".", setting: str = "path", *, sheet: str | None = None
) -> Table:
    """Return the table in a file, whose kind its name tells. Raises DataError if there is no such file.

    `setting` is the one that names the file, `sheet` a sheet of an Excel workbook.
    """
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "there is no such file"
        raise DataError(f"{path}: {what} (data.params.{setting})")
    if path.suffix.lower() == ".xlsx":
        from workflow_lib.datasets._excel import ExcelTable

        return ExcelTable(path, decimal, sheet, setting)
    if sheet is not None:
        raise DataError(f"{path}: has no sheets (data.params.sheet is {sheet}); it is for .xlsx")
    if path.suffix.lower() in (".parquet", ".pq"):
        return ParquetTable(path, decimal)
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return CsvTable(path, delimiter)
    raise DataError(f"{path}: none of .csv, .tsv, .txt, .parquet, .pq and .xlsx; rename or convert it")


def check_names(table: Table) -> None:
    """Raise DataError if the table has no columns, or two with the same name."""
    if not table.columns:
        raise DataError(f"{table.path}: is empty; the first line must name the columns")
    if twice := [name for name, count in Counter(table.columns).items() if count > 1]:
        raise DataError(f"{table.path}: {table.columns.count(twice[0])} columns are named `{twice[0]}`; rename them")


def check_column(table: Table, setting: str, name: str) -> None:
    """Raise DataError if the table does not have the column that a setting names."""
    if name not in table.columns:
        near = difflib.get_close_matches(name, table.columns, 1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        other = next((sign for sign in OTHER_DELIMITERS if len(table.columns) == 1 and sign in table.columns[0]), None)
        if other is not None:
            written = f'set data.params.delimiter: "{OTHER_DELIMITERS[other]}"'
            hint = f"; its only column is named `{table.columns[0]:.60}`: {written}"
        there = ", ".join(table.columns)
        raise DataError(f"{table.path}: has no column `{name}` (data.params.{setting}){hint} (there are: {there})")


def splits_of(path: Path, column: str | None, piece: Piece) -> np.ndarray:
    """Return the name of the split of each row; without a column, train."""
    if column is None:
        return np.full(len(piece.rows), "train")
    for value, place in zip(piece.values[column], piece.places, strict=True):
        if value not in SPLITS:
            raise DataError(f"{path}, {place}, column `{column}`: no split `{value}`; allowed: {', '.join(SPLITS)}")
    return np.array(piece.values[column])


class CsvTable:
    """A CSV file in UTF-8 whose first line names the columns."""

    def __init__(self, path: Path, delimiter: str) -> None:
        self.path, self.delimiter = path, delimiter
        self.file = path.open("rb")
        self.size = path.stat().st_size
        self.starts: list[int] = []  # first byte of each piece, set by a complete scan
        try:
            header, self.begin, self.lines = next(self._records(0, self.size, 1), ([], 0, 0))
        except DataError:
            self.file.close()
            raise
        self.columns = tuple(name.strip() for name in header)
        self.unusable: dict[str, str] = {}

    def scan(self, columns: Sequence[str]) -> Iterator[Piece]:
        starts: list[int] = []
        block: list[list[str]] = []
        places: list[str] = []
        begin, rows = self.begin, 0
        for record, end, line in self._records(self.begin, self.size, self.lines + 1):
            if len(record) != len(self.columns):
                raise DataError(
                    f"{self.path}, line {line}: has {len(record)} values, but the first line names {len(self.columns)}"
                )
            if not block:
                starts.append(begin)
            block.append(record)
            places.append(f"line {line}")
            begin = end
            if len(block) == PIECE_ROWS:
                yield self._piece(np.arange(rows, rows + PIECE_ROWS), block, places, columns)
                rows, block, places = rows + PIECE_ROWS, [], []
        if block:
            yield self._piece(np.arange(rows, rows + len(block)), block, places, columns)
        self.starts = [*starts, self.size]

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> Iterator[Piece]:
        for number in np.unique(rows // PIECE_ROWS).tolist():
            records = [record for record, *_ in self._records(self.starts[number], self.starts[number + 1], 0)]
            wanted = rows[rows // PIECE_ROWS == number]
            yield self._piece(wanted, [records[row] for row in (wanted % PIECE_ROWS).tolist()], (), columns)

    def close(self) -> None:
        self.file.close()

    def _piece(
        self, rows: np.ndarray, records: list[list[str]], places: Sequence[str], columns: Sequence[str]
    ) -> Piece:
        numbers = {name: self.columns.index(name) for name in columns}
        return Piece(rows, places, {name: [record[n].strip() for record in records] for name, n in numbers.items()})

    def _records(self, start: int, stop: int, line: int) -> Iterator[tuple[list[str], int, int]]:
        """Yield each record between two bytes, the byte after it, and the line on which it ends; skip empty lines."""
        lines = _Lines(self.file.fileno(), start, stop, self.path, line)
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        while True:
            try:
                record = next(reader, None)
            except csv.Error as error:
                raise DataError(f"{self.path}, line {lines.line - 1}: not CSV ({error})") from error
            if record is None:
                return
            if record:
                yield record, lines.end, lines.line - 1


class _Lines:
    """Iterator over the lines of a file between two bytes; `end` is the byte after the last line returned."""

    def __init__(self, descriptor: int, start: int, stop: int, path: Path, line: int) -> None:
        self.end, self.line, self.path = start, line, path
        self._lines = io.BufferedReader(_Part(descriptor, start, stop), 1 << 18)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw = self._lines.readline()
        if not raw:
            raise StopIteration
        try:
            text = raw.decode("utf-8-sig" if self.end == 0 else "utf-8")  # spreadsheets write a byte order mark
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path}, line {self.line}: not UTF-8 (byte {self.end + error.start} of the file); "
                f"{in_utf8(self.path)}"
            ) from error
        self.end += len(raw)
        self.line += 1
        return text


class _Part(io.RawIOBase):
    """The bytes of an open file from start to stop. It does not move the file's position, which threads share."""

    def __init__(self, descriptor: int, start: int, stop: int) -> None:
        self.descriptor, self.position, self.stop = descriptor, start, stop

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = os.pread(self.descriptor, min(len(buffer), self.stop - self.position), self.position)
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


class ParquetTable:
    """A Parquet file; columns of numbers, strings and booleans can be used."""

    def __init__(self, path: Path, decimal: str) -> None:
        try:
            from pyarrow import ArrowException, parquet
        except ModuleNotFoundError as error:
            raise DataError(f"{path}: Parquet needs pyarrow: {how_to_install('parquet')} (or use CSV)") from error
        self.path, self.decimal, self.damage = path, decimal, (ArrowException, OSError, ValueError)
        try:
            with parquet.ParquetFile(path) as file:
                schema, groups = file.schema_arrow, file.metadata.num_row_groups
                self.ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(groups)])
        except self.damage as error:
            raise DataError(f"{path}: not a readable Parquet file ({error})") from error
        # The name that pandas gives to an index without a name: not one of the user's columns.
        self.columns = tuple(name for name in schema.names if not name.startswith("__index_level_"))
        self.unusable = {field.name: str(field.type) for field in schema if not (_is_text(field) or _is_number(field))}

    def scan(self, columns: Sequence[str]) -> Iterator[Piece]:
        for group in range(len(self.ends)):
            yield from self._pieces(group, columns)

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> Iterator[Piece]:
        group_of = np.searchsorted(self.ends, rows, side="right")
        for group in np.unique(group_of).tolist():
            wanted = rows[group_of == group]
            for piece in self._pieces(group, columns):
                here = wanted[(wanted >= piece.rows[0]) & (wanted <= piece.rows[-1])]
                if len(here):
                    yield _select(piece, (here - piece.rows[0]).tolist())
                if piece.rows[-1] >= wanted[-1]:
                    break

    def close(self) -> None:
        """Do nothing: the file is open only during a read."""

    def _pieces(self, group: int, columns: Sequence[str]) -> Iterator[Piece]:
        from pyarrow import parquet

        first = int(self.ends[group - 1]) if group else 0
        try:
            with parquet.ParquetFile(self.path) as file:
                for batch in file.iter_batches(
                    PIECE_ROWS, row_groups=[group], columns=list(columns), use_threads=False
                ):
                    rows = np.arange(first, first + batch.num_rows)
                    values = {name: _values(batch.column(name), self.decimal) for name in columns}
                    yield Piece(rows, [f"row {row}" for row in rows.tolist()], values)
                    first += batch.num_rows
        except self.damage as error:
            raise DataError(f"{self.path}: damaged after row {first} ({error})") from error


def _select(piece: Piece, places: list[int]) -> Piece:
    values: dict[str, Values] = {
        name: column[places] if isinstance(column, np.ndarray) else [column[place] for place in places]
        for name, column in piece.values.items()
    }
    return Piece(piece.rows[places], [piece.places[place] for place in places], values)


def _is_text(column: Any) -> bool:
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    return types.is_string(kind) or types.is_large_string(kind)


def _is_number(column: Any) -> bool:
    from pyarrow import types

    kinds = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null)  # null: no values
    return any(is_kind(column.type) for is_kind in kinds)


def _values(column: Any, decimal: str) -> Values:
    """Return the values of a pyarrow column as numbers; booleans, and numbers that float64 could round, as texts.

    These texts have the decimal mark of the settings, with which they are read again.
    """
    from pyarrow import compute, float64, types

    kind = column.type
    if _is_text(column):
        texts: list[str | None] = [None if text is None else text.strip() for text in column.to_pylist()]
        return texts
    if types.is_boolean(kind):
        return [None if value is None else str(value) for value in column.to_pylist()]
    if types.is_decimal(kind):
        return [None if value is None else format(value, "f").replace(".", decimal) for value in column.to_pylist()]
    if types.is_integer(kind):
        ends = compute.min_max(column).as_py()
        if ends["min"] is not None and max(abs(ends["min"]), abs(ends["max"])) > 2**53:
            return [None if value is None else str(value) for value in column.to_pylist()]
    numbers: np.ndarray = column.cast(float64(), safe=False).to_numpy(zero_copy_only=False)
    return numbers
