"""Files of predictions, written a batch at a time; they appear when they are complete."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias, final

import numpy as np

from workflow_lib.errors import UserError
from workflow_lib.files import open_atomic
from workflow_lib.results.workbook import Workbook
from workflow_lib.shipped import how_to_install

Rows: TypeAlias = "Mapping[str, Sequence[Any] | np.ndarray]"  # columns by name, of equal length
SUFFIXES = (".csv", ".parquet", ".xlsx")


class Table(ABC):
    """A file of columns; all batches have the same ones."""

    @abstractmethod
    def add(self, columns: Rows) -> None:
        """Add the rows of a batch."""

    @abstractmethod
    def finish(self) -> None:
        """Write what is buffered."""


def check_output(output: Path, data: Path) -> None:
    """Raise UserError if predictions cannot be written to this file, or if it is the data."""
    if output.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"--output {output}: allowed: a name that ends with {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder")
    if output.exists() and (output.samefile(data) or (data.is_dir() and data.resolve() in output.resolve().parents)):
        raise UserError(f"--output {output}: is the data, which is not overwritten; name another file")
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--output {output}: no file can be written in {folder}")
    if output.suffix.lower() == ".parquet":
        _pyarrow()
    if output.suffix.lower() == ".xlsx" and importlib.util.find_spec("openpyxl") is None:
        raise UserError(f"--output: Excel needs openpyxl: {how_to_install('excel')} (or write .csv)")


@contextmanager
def open_table(output: Path) -> Iterator[Table]:
    """Yield the file; it replaces an older one when the block ends, and nothing is left if it raises."""
    with open_atomic(output) as file:
        table = KINDS[output.suffix.lower()](file)
        yield table
        table.finish()


@final
class Csv(Table):
    """CSV in UTF-8; every number reads back as the same float64."""

    def __init__(self, file: IO[bytes]) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._has_header = False

    def add(self, columns: Rows) -> None:
        """Add the rows of a batch."""
        if not self._has_header:
            self._writer.writerow(columns)
            self._has_header = True
        self._writer.writerows(zip(*map(_cells, columns.values()), strict=True))

    def finish(self) -> None:
        """Write what is buffered, and leave the file open."""
        self._text.flush()
        self._text.detach()


def _cells(values: Sequence[Any] | np.ndarray) -> Sequence[Any]:
    listed = values.tolist() if isinstance(values, np.ndarray) else values
    return [repr(value) if isinstance(value, float) else value for value in listed]


@final
class Parquet(Table):
    """Parquet; the types of the columns are those of the first batch."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._writer: Any = None

    def add(self, columns: Rows) -> None:
        """Add the rows of a batch."""
        arrow, parquet = _pyarrow()
        if self._writer is None:
            batch = arrow.table(dict(columns))
            self._writer = parquet.ParquetWriter(self._file, batch.schema)
        else:
            batch = arrow.table(dict(columns), schema=self._writer.schema)
        self._writer.write_table(batch)

    def finish(self) -> None:
        """Write the last part of the file."""
        if self._writer is not None:
            self._writer.close()


@final
class Excel(Table):
    """A workbook with one sheet, `predictions`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._book = Workbook("write .csv or .parquet (--output)")
        self._has_header = False

    def add(self, columns: Rows) -> None:
        """Add the rows of a batch."""
        if not self._has_header:
            self._book.begin("predictions", list(columns))
            self._has_header = True
        listed = (values.tolist() if isinstance(values, np.ndarray) else values for values in columns.values())
        for row in zip(*listed, strict=True):
            self._book.add(row)

    def finish(self) -> None:
        """Write the file."""
        self._book.save(self._file)


KINDS: Mapping[str, Callable[[IO[bytes]], Table]] = {".csv": Csv, ".parquet": Parquet, ".xlsx": Excel}


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise UserError(f"--output: Parquet needs pyarrow: {how_to_install('parquet')} (or write .csv)") from error
    return pyarrow, parquet
