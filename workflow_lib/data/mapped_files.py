"""Files that are read in place: no byte reaches a model before its part of the file was verified.

A file is divided into parts of PART_BYTES. `preprocess` computes a digest of each. In a training, a part is verified
when a process reads from it for the first time. Later its bytes change only if somebody writes to the file: each
batch therefore also checks that the file has the inode, size and time that it had when it was opened.
"""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np

from workflow_lib.errors import DataError
from workflow_lib.files import blake2b

# A random row costs the digest of one part when it is the first of its part: a few milliseconds.
PART_BYTES = 1 << 22
DIGEST_BYTES = 16
MOST_OPEN = 128  # mapped files at once: each takes a file descriptor

CheckPart: TypeAlias = Callable[[int, int, memoryview], None]


class MappedFiles:
    """Files of the user that a data set reads by `view`, from several threads at once.

    paths        the files, which `view` names by their number
    sizes        the bytes of each
    check_part   called once by `preprocess` for each part, with the number of the file, the place of the part in it
                 and its bytes; raises DataError for content that cannot be used
    """

    def __init__(self, paths: Sequence[Path], check_part: CheckPart = lambda number, start, content: None) -> None:
        self.paths, self.check_part = tuple(paths), check_part
        self.states = [_state(path) for path in self.paths]
        self.sizes = [size for _, size, _ in self.states]
        self._digests: Sequence[np.ndarray] | None = None
        self._verified: list[bytearray] = []
        self._open: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._lock = threading.Lock()
        self._local = threading.local()

    def verify_with(self, sizes: Sequence[int], digests: Sequence[np.ndarray]) -> None:
        """From now on, verify each part when it is read for the first time: uint8 [parts, 16] for each file."""
        for path, now, then in zip(self.paths, self.sizes, sizes, strict=True):
            if now != then:
                raise DataError(f"{path}: has {now} bytes, but {then} when preprocess read it; {CHANGED}")
        self._verified = [bytearray(len(of_parts)) for of_parts in digests]
        self._digests = digests

    def view(self, number: int, start: int, stop: int) -> memoryview:
        """Return the bytes of a file from start to stop, without copying them."""
        touched: set[int] | None = getattr(self._local, "touched", None)
        if touched is None or number not in touched:
            self.check_unchanged(number)
            if touched is not None:
                touched.add(number)
        if not 0 <= start <= stop <= self.sizes[number]:
            raise DataError(f"{self.paths[number]}: has {self.sizes[number]} bytes; {start} to {stop} were asked for")
        if start == stop:
            return memoryview(b"")
        mapped = memoryview(self._mapping(number))
        if self._digests is not None:
            for part in range(start // PART_BYTES, (stop - 1) // PART_BYTES + 1):
                if not self._verified[number][part]:
                    self._verify(number, part, mapped, bytes(self._digests[number][part]))
        return mapped[start:stop]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raise DataError at the end of the block if a file that this thread read in it has changed meanwhile."""
        touched: set[int] = set()
        self._local.touched = touched
        try:
            yield
        finally:
            self._local.touched = None
        for number in touched:
            self.check_unchanged(number)

    def check_unchanged(self, number: int) -> None:
        """Raise DataError if the file is not as it was when this object was created."""
        if _state(self.paths[number]) != self.states[number]:
            raise DataError(f"{self.paths[number]}: changed while it was being read; run again when it is complete")

    def close(self) -> None:
        """Close the files, each when its last view is gone."""
        with self._lock:
            opened, self._open = self._open, OrderedDict()
        for mapped in opened.values():
            with suppress(BufferError):
                mapped.close()

    def _mapping(self, number: int) -> mmap.mmap:
        with self._lock:
            if number not in self._open:
                with self.paths[number].open("rb") as file:
                    self._open[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                if len(self._open) > MOST_OPEN:
                    self._open.popitem(last=False)  # closed by the interpreter when its last view is gone
            self._open.move_to_end(number)
            return self._open[number]

    def _verify(self, number: int, part: int, mapped: memoryview, digest: bytes) -> None:
        start = part * PART_BYTES
        content = mapped[start : start + PART_BYTES]
        if digest_of(content) != digest:
            raise DataError(
                f"{self.paths[number]}: bytes {start} to {start + len(content)} are not those that preprocess read; "
                f"{CHANGED}"
            )
        self._verified[number][part] = 1


CHANGED = (
    "the file was changed or is damaged. Restore it; or, if the new content is meant, `touch` the file and run the "
    "pipeline again, which prepares it as new data"
)


def parts_of(size: int) -> int:
    """Return the number of parts of a file."""
    return -(-size // PART_BYTES)


def digest_of(content: bytes | memoryview) -> bytes:
    """Return the digest of a part."""
    return blake2b(content, size=DIGEST_BYTES).digest()


def _state(path: Path) -> tuple[int, int, int]:
    """Return inode, size and modification time of a file."""
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return state.st_ino, state.st_size, state.st_mtime_ns
