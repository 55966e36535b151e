"""Record batches of Arrow files and row groups of Parquet files, read in place through `MappedFiles.view`."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from workflow_lib.data import MappedFiles
from workflow_lib.errors import DataError

SUFFIXES = (".arrow", ".parquet", ".pq")
MAGIC = b"ARROW1"
HELD_GROUPS = 4  # decoded row groups of Parquet files in memory
Batch = Any  # pyarrow.RecordBatch or pyarrow.Table


def pyarrow() -> Any:
    """Return the package with the modules that are used here."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("Arrow and Parquet files need pyarrow: pip install 'everstep[parquet]'") from error
    return pyarrow


def index_batches(paths: Sequence[Path], columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the file, place, bytes and rows of each batch, int64. Raises DataError for a file without the columns."""
    found: list[tuple[int, int, int, int]] = []
    first: Any = None
    for number, path in enumerate(paths):
        with _readable(path):
            schema, batches = _parquet_batches(path) if path.suffix != ".arrow" else _arrow_batches(path)
        _check_columns(path, schema, columns)
        first = first or (path, schema)
        for name in columns:
            if schema.field(name).type != first[1].field(name).type:
                raise DataError(
                    f"{path}: `{name}` is {schema.field(name).type}, but {first[1].field(name).type} in {first[0]}; "
                    "write it with one type"
                )
        found += [(number, *batch) for batch in batches]
    values = np.array(found, np.int64).reshape(-1, 4)
    return dict(zip(("file", "place", "bytes", "rows"), values.T.copy(), strict=True))


def checked_schema(path: Path, columns: Sequence[str]) -> Any:
    """Return the schema of a file, from its header. Raises DataError if it cannot be read or lacks a column."""
    with _readable(path):
        schema = schema_of(path)
    _check_columns(path, schema, columns)
    return schema


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise DataError instead of the errors of pyarrow."""
    try:
        yield
    except (pyarrow().ArrowException, OSError, EOFError, StopIteration) as error:
        raise DataError(f"{path}: not a readable {path.suffix} file: {error}") from error


def _check_columns(path: Path, schema: Any, columns: Sequence[str]) -> None:
    for name in columns:
        if schema.names.count(name) != 1:
            how = "is missing" if name not in schema.names else "occurs more than once"
            raise DataError(f"{path}: the column `{name}` {how}; there are: {', '.join(schema.names[:30])}")
    _check_dictionaries(path, schema, columns)


def _check_dictionaries(path: Path, schema: Any, columns: Sequence[str]) -> None:
    for name in columns:
        if pyarrow().types.is_dictionary(schema.field(name).type):
            raise DataError(f"{path}: `{name}` is dictionary-encoded; cast it to {schema.field(name).type.value_type}")


def _arrow_batches(path: Path) -> tuple[Any, list[tuple[int, int, int]]]:
    """Return the schema, and first byte, bytes and rows of each record batch of a stream or a file."""
    package = pyarrow()
    with package.memory_map(str(path)) as file:
        file.seek(8 if file.read(len(MAGIC)) == MAGIC else 0)
        messages = package.ipc.MessageReader.open_stream(file)
        schema = package.ipc.read_schema(messages.read_next_message())
        _check_dictionaries(path, schema, schema.names)  # their batches cannot be read alone
        found: list[tuple[int, int, int]] = []
        while True:
            begin = file.tell()
            try:
                message = messages.read_next_message()
            except StopIteration:
                return schema, found
            if message.type == "record batch":
                rows = package.ipc.read_record_batch(message, schema).num_rows
                found.append((begin, file.tell() - begin, rows))


def _parquet_batches(path: Path) -> tuple[Any, list[tuple[int, int, int]]]:
    """Return the schema, and the number, 0 and the rows of each row group."""
    with pyarrow().parquet.ParquetFile(path) as file:
        groups = [(number, 0, file.metadata.row_group(number).num_rows) for number in range(file.num_row_groups)]
        return file.schema_arrow, groups


def schema_of(path: Path) -> Any:
    """Return the schema of a file."""
    return (_parquet_batches if path.suffix != ".arrow" else _arrow_schema)(path)[0]


def _arrow_schema(path: Path) -> tuple[Any, None]:
    package = pyarrow()
    with package.memory_map(str(path)) as file:
        file.seek(8 if file.read(len(MAGIC)) == MAGIC else 0)
        return package.ipc.read_schema(package.ipc.MessageReader.open_stream(file).read_next_message()), None


class Table:
    """The rows of one split, in batches; `first` is the number of its first file in `files`."""

    def __init__(self, files: MappedFiles, first: int, index: Mapping[str, np.ndarray], columns: Sequence[str]) -> None:
        self._files, self._first, self._index, self._columns = files, first, index, list(columns)
        self._ends = np.cumsum(index["rows"])
        self._schemas: dict[int, Any] = {}
        self._held: OrderedDict[int, Batch] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def batches(self) -> Iterator[Batch]:
        """Yield all batches in order."""
        return (self._batch(number) for number in range(len(self._ends)))

    def metadata(self) -> dict[bytes, bytes]:
        """Return the metadata of the schema of the first file."""
        found: dict[bytes, bytes] = self._schema(self._first).metadata or {}
        return found

    def parts(self, rows: np.ndarray) -> Iterator[tuple[Batch, list[int]]]:
        """Yield each batch that has some of the ascending rows, and the numbers of these in it."""
        batch_of = np.searchsorted(self._ends, rows, side="right")
        for group in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(batch_of)) + 1):
            if len(group):
                number = int(batch_of[group[0]])
                begin = int(self._ends[number] - self._index["rows"][number])
                yield self._batch(number), (rows[group] - begin).tolist()

    def _batch(self, number: int) -> Batch:
        file = self._first + int(self._index["file"][number])
        place, size = int(self._index["place"][number]), int(self._index["bytes"][number])
        if self._files.paths[file].suffix != ".arrow":
            batch = self._row_group(number, file, place)
        else:
            package = pyarrow()
            message = package.ipc.read_message(package.py_buffer(self._files.view(file, place, place + size)))
            batch = package.ipc.read_record_batch(message, self._schema(file)).select(self._columns)
        for name in self._columns:
            if batch.column(name).null_count:
                begin = int(self._ends[number] - self._index["rows"][number])
                row = next(row for row, is_null in enumerate(batch.column(name).is_null().to_pylist()) if is_null)
                raise DataError(
                    f"{self._files.paths[file]}: `{name}` is null in row {begin + row} of the split; remove such rows"
                )
        return batch

    def _schema(self, file: int) -> Any:
        if file not in self._schemas:
            self._schemas[file] = schema_of(self._files.paths[file])
        return self._schemas[file]

    def _row_group(self, number: int, file: int, group: int) -> Batch:
        with self._lock:  # also so that two threads do not decode the same group
            if number not in self._held:
                package = pyarrow()
                stream = package.PythonFile(_Verified(self._files, file), mode="r")
                with package.parquet.ParquetFile(stream, pre_buffer=False) as opened:
                    table = opened.read_row_group(group, columns=self._columns, use_threads=False)
                self._held[number] = table.combine_chunks()
                if len(self._held) > HELD_GROUPS:
                    self._held.popitem(last=False)
            else:  # its file may have changed since
                self._files.view(file, 0, 0)
            self._held.move_to_end(number)
            return self._held[number]


class _Verified(io.RawIOBase):
    """A file whose bytes are read by `MappedFiles.view`."""

    def __init__(self, files: MappedFiles, number: int) -> None:
        self._files, self._number, self._at = files, number, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._files.sizes[self._number]}[whence]
        )
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._files.sizes[self._number]
        stop = end if size < 0 else min(end, self._at + size)
        content = bytes(self._files.view(self._number, self._at, stop))
        self._at = stop
        return content
