"""Record batches of Arrow files and row groups of Parquet files, read in place through `MappedFiles.view`."""

from __future__ import annotations

import io
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from workflow_lib.data import MappedFiles
from workflow_lib.errors import DataError
from workflow_lib.shipped import how_to_install

SUFFIXES = (".arrow", ".parquet", ".pq")
MAGIC = b"ARROW1"
ENDS = (b"\xff\xff\xff\xff\0\0\0\0", b"\0\0\0\0")  # of a stream: now, and before version 0.15
HELD_GROUPS = 4  # decoded row groups of Parquet files in memory
Batch = Any  # pyarrow.RecordBatch or pyarrow.Table
Where: TypeAlias = Callable[[int], str]  # names a row of a batch


def pyarrow() -> Any:
    """Return the package with the modules that are used here."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"Arrow and Parquet files need pyarrow: {how_to_install('parquet')}") from error
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
        check_alike(path, schema, first, columns)
        found += [(number, *batch) for batch in batches]
    values = np.array(found, np.int64).reshape(-1, 4)
    return dict(zip(("file", "place", "bytes", "rows"), values.T.copy(), strict=True))


def check_alike(path: Path, schema: Any, first: tuple[Path, Any], columns: Sequence[str]) -> None:
    """Raise DataError if a column has another type than in the first file, which is given with its schema."""
    for name in columns:
        if schema.field(name).type != first[1].field(name).type:
            raise DataError(
                f"{path}: `{name}` is {schema.field(name).type}, but {first[1].field(name).type} in {first[0]}; "
                "write it with one type"
            )


def saved_files(path: Path, files: Iterable[Path]) -> list[Path]:
    """Return the files without those that a data set of Hugging Face, saved to disk, does not list, such as caches.

    Raises DataError if a file or split that it lists is missing, or if it has a selection of its rows.
    """
    found, listed = [], dict[Path, set[str] | None]()
    for file in files:
        if file.parent not in listed:
            listed[file.parent] = _listed(file.parent)
        names = listed[file.parent]
        if names is None or file.name in names:
            found.append(file)
    splits = _read_json(path / "dataset_dict.json").get("splits", [])
    if missing := [split for split in splits if not (path / split).is_dir()]:
        raise DataError(f"{path}: has no folder `{missing[0]}`, which its dataset_dict.json lists")
    return found


def _listed(folder: Path) -> set[str] | None:
    """Return the names of the files of a data set that `save_to_disk` wrote into the folder; None if it did not."""
    state = _read_json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(f"{folder}: has a selection of its rows; save it after `flatten_indices()`")
    names = {str(file["filename"]) for file in state.get("_data_files", ())}
    if missing := sorted(name for name in names if not (folder / name).is_file()):
        raise DataError(f"{folder / missing[0]}: is missing; the state.json beside it lists it")
    return names or None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error})") from error
    return found if isinstance(found, dict) else {}


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
        raise DataError(f"{path}: not a readable {path.suffix} file: {str(error) or 'it ends too early'}") from error


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
                _check_end(path, begin)
                return schema, found
            if message.type == "record batch":
                rows = package.ipc.read_record_batch(message, schema).num_rows
                found.append((begin, file.tell() - begin, rows))


def _check_end(path: Path, begin: int) -> None:
    """Raise DataError unless the batches end with the mark of a stream, and a file with that of a file."""
    with path.open("rb") as file:
        is_file = file.read(len(MAGIC)) == MAGIC
        file.seek(begin)
        rest = file.read()
    if not rest.startswith(ENDS) or (is_file and not rest.endswith(MAGIC)):
        raise DataError(f"{path}: ends without the mark of its end: it is incomplete; write it again")


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
        firsts = np.searchsorted(index["file"], np.arange(len(files.paths) - first))  # batch of each file
        self._begins = np.append(0, self._ends)[firsts]  # rows before each file
        self._schemas: dict[int, Any] = {}
        self._held: OrderedDict[int, Batch] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def batches(self) -> Iterator[tuple[Batch, Where]]:
        """Yield all batches in order, and a function that names their rows."""
        return ((self._batch(number), self._where(number)) for number in range(len(self._ends)))

    def metadata(self) -> dict[bytes, bytes]:
        """Return the metadata of the schema of the first file."""
        found: dict[bytes, bytes] = self._schema(self._first).metadata or {}
        return found

    def places(self, rows: np.ndarray) -> tuple[list[Path], np.ndarray]:
        """Return the file of each row, and its number in the file, from 0."""
        number = np.searchsorted(self._ends, rows, side="right")
        files = self._index["file"][number]
        return [self._files.paths[self._first + file] for file in files.tolist()], rows - self._begins[files]

    def where(self, row: int) -> str:
        """Return the place of a row for messages."""
        (path,), (number,) = self.places(np.array([row]))
        return f"{path}, row {number}"

    def _where(self, number: int) -> Where:
        begin = int(self._ends[number] - self._index["rows"][number])
        return lambda place: self.where(begin + place)

    def parts(self, rows: np.ndarray) -> Iterator[tuple[Batch, list[int], Where]]:
        """Yield each batch that has some of the ascending rows, their numbers in it, and a function that names them."""
        batch_of = np.searchsorted(self._ends, rows, side="right")
        for group in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(batch_of)) + 1):
            if len(group):
                number = int(batch_of[group[0]])
                begin = int(self._ends[number] - self._index["rows"][number])
                yield self._batch(number), (rows[group] - begin).tolist(), self._where(number)

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
                row = next(row for row, is_null in enumerate(batch.column(name).is_null().to_pylist()) if is_null)
                raise DataError(f"{self._where(number)(row)}: `{name}` is null; remove such rows")
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
