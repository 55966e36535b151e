"""Arrays of an npz file, read a few rows at a time; a pickle in the file is never loaded."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from workflow_lib.errors import DataError

BLOCK_BYTES = 1 << 24  # read at once
SMALL_BYTES = 1 << 28  # allowed content of any file, however small
MAX_RATIO = 100  # allowed content of larger files, by file size; images of handwriting compress to about a tenth
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError, MemoryError)


class Archive:
    """An npz file, open for reading until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            what = "is a folder, not an npz file" if path.is_dir() else "there is no such file"
            raise DataError(f"{path}: {what} (data.params.path)")
        with _damage_as_error(f"{path}: not an npz file, or truncated"):
            self.zip = zipfile.ZipFile(path)
            _check_size(path, sum(entry.file_size for entry in self.zip.infolist()))
        self.resources = ExitStack()
        self.resources.enter_context(self.zip)
        self.keys = tuple(name.removesuffix(".npy") for name in self.zip.namelist())

    def member(self, key: str) -> Member:
        """Return the array of a key; its values are not read yet."""
        if key not in self.keys:
            raise DataError(f"{self.path}: the key `{key}` is missing; there are: {', '.join(self.keys) or 'none'}")
        return Member(self, key)

    def close(self) -> None:
        """Close the file and its members."""
        self.resources.close()


def _check_size(path: Path, size: int) -> None:
    """Reject a small file that would take gigabytes of memory, before any of it is read."""
    if size > max(SMALL_BYTES, MAX_RATIO * path.stat().st_size):
        raise DataError(
            f"{path}: has {path.stat().st_size:,} bytes and contains {size:,}, more than {MAX_RATIO} times its size; "
            f"if that is right, save it with numpy.savez, which does not compress"
        )


class Member:
    """An array in the file: the header is read by the constructor, rows on request."""

    def __init__(self, archive: Archive, key: str) -> None:
        self.where = f"{archive.path}: key `{key}`"
        name = f"{key}.npy" if f"{key}.npy" in archive.zip.namelist() else key
        with _damage_as_error(f"{self.where}: not a readable numpy array"):
            self._file: IO[bytes] = archive.resources.enter_context(archive.zip.open(name))
            version = np.lib.format.read_magic(self._file)
            if version not in HEADERS:
                raise ValueError(f"format {version[0]}.{version[1]}")
            self.shape, self._is_fortran, self.dtype = HEADERS[version](self._file)
            self._start = self._file.tell()
            size = archive.zip.getinfo(name).file_size
        if self.dtype.hasobject:
            raise DataError(
                f"{self.where}: has pickled Python objects, which are never loaded because they can run code; "
                "save arrays of numbers"
            )
        if self.dtype.kind not in "biuf":
            raise DataError(f"{self.where}: has type {self.dtype}; allowed: numbers")
        if size != self._start + self._bytes(self.shape):
            raise DataError(
                f"{self.where}: damaged: shape {self.shape} of {self.dtype} needs {self._bytes(self.shape)} bytes, "
                f"but it has {size - self._start}"
            )

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def _bytes(self, shape: tuple[int, ...]) -> int:
        return int(np.prod(shape, dtype=object)) * self.dtype.itemsize

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the rows from start to stop in pieces of bounded memory, each with the number of its first row."""
        step = max(1, BLOCK_BYTES // max(1, self._bytes(self.shape[1:])))
        for first in range(start, stop, step):
            yield first, self._rows(first, min(first + step, stop))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return these rows, which must be ascending."""
        taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for first, block in self.blocks(int(rows[0]), int(rows[-1]) + 1):
            within = slice(*np.searchsorted(rows, (first, first + len(block))))
            taken[within] = block[rows[within] - first]
        return taken

    def _rows(self, start: int, stop: int) -> np.ndarray:
        if self._is_fortran:
            return self._whole[start:stop]
        shape = (stop - start, *self.shape[1:])
        with _damage_as_error(f"{self.where}: damaged"):
            self._file.seek(self._start + self._bytes((start, *self.shape[1:])))
            return np.frombuffer(self._content(self._bytes(shape)), self.dtype).reshape(shape)

    @cached_property
    def _whole(self) -> np.ndarray:
        """The whole array, for Fortran order, in which the rows are not consecutive in the file."""
        with _damage_as_error(f"{self.where}: damaged"):
            self._file.seek(self._start)
            content = self._content(self._bytes(self.shape))
        return np.frombuffer(content, self.dtype).reshape(self.shape, order="F")

    def _content(self, size: int) -> bytes:
        content = self._file.read(size)
        if len(content) < size:
            raise EOFError("it is truncated")
        return content


@contextmanager
def _damage_as_error(message: str) -> Iterator[None]:
    """Raise DataError with the message for damage of any kind."""
    try:
        yield
    except DAMAGE as error:
        raise DataError(f"{message} ({error or type(error).__name__})") from error
