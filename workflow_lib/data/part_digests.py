"""Digests of the parts of files that are read in place. After a kill, finished segments are not read again.

work/parts/<digest of path, size, time and settings>/<segment>.json   size of a file, digests of SEGMENT_PARTS parts

A file of a single part has no record: to write one durably takes as long as to read the file again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workflow_lib import config
from workflow_lib.data.mapped_files import DIGEST_BYTES, PART_BYTES, MappedFiles, digest_of, parts_of
from workflow_lib.data.prefetch import prefetch
from workflow_lib.errors import DataError, StateError
from workflow_lib.files import blake2b, read_json, write_signed
from workflow_lib.text import byte_size

log = logging.getLogger(__name__)

SEGMENT_PARTS = 64  # 256 MiB: at most this much of each thread's work is lost by a kill
LOG_INTERVAL_S = 20.0


@dataclass(frozen=True)
class _Segment:
    number: int  # of the file
    first: int  # part
    stop: int
    record: Path | None


def part_digests(files: MappedFiles, made_by: str, folder: Path, threads: int) -> list[np.ndarray]:
    """Return the digests of the parts of each file, uint8 [parts, 16], and check the content of the parts.

    `made_by` is the digest of the settings and the code that `check_part` depends on.
    """
    segments = [*_segments(files, made_by, folder)]
    found: list[list[np.ndarray]] = [[] for _ in files.paths]
    total, done, logged = sum(files.sizes), 0, time.monotonic()
    with closing(
        prefetch(lambda segment: _digests(files, segment), segments, threads if threads > 1 else 0)
    ) as results:
        for segment, digests in zip(segments, results, strict=True):
            found[segment.number].append(digests)
            done += len(digests) * PART_BYTES
            if time.monotonic() - logged > LOG_INTERVAL_S:
                logged = time.monotonic()
                log.info("%s of %s verified", byte_size(min(done, total)), byte_size(total))
    empty = np.empty((0, DIGEST_BYTES), np.uint8)
    return [np.concatenate([empty, *of_file]) for of_file in found]


def file_digest(size: int, digests: np.ndarray) -> str:
    """Return the digest of a file from those of its parts."""
    return blake2b(size.to_bytes(8, "little") + digests.tobytes(), kind="everstep.parts").hexdigest()


def recorded_file(folder: Path) -> str | None:
    """Return the digest of the file whose parts have records in the folder; None if not all of them have one."""
    records = []
    try:
        size = int(read_json(folder / "0.json", "size", "digests")["size"])
        for number in range(-(-parts_of(size) // SEGMENT_PARTS)):
            records.append(bytes.fromhex(read_json(folder / f"{number}.json", "digests")["digests"]))
    except (FileNotFoundError, StateError, ValueError, TypeError):
        return None
    digests = np.frombuffer(b"".join(records), np.uint8)
    return file_digest(size, digests) if len(digests) == parts_of(size) * DIGEST_BYTES else None


def _segments(files: MappedFiles, made_by: str, folder: Path) -> Iterator[_Segment]:
    for number, (path, (_, size, mtime_ns)) in enumerate(zip(files.paths, files.states, strict=True)):
        key = config.digest([made_by, str(path.absolute()), size, mtime_ns], "everstep-parts")
        for first in range(0, parts_of(size), SEGMENT_PARTS):
            stop = min(first + SEGMENT_PARTS, parts_of(size))
            record = folder / key / f"{first // SEGMENT_PARTS}.json" if parts_of(size) > 1 else None
            yield _Segment(number, first, stop, record)


def _digests(files: MappedFiles, segment: _Segment) -> np.ndarray:
    """Return the recorded digests of the segment, or compute and record them."""
    length = (segment.stop - segment.first) * DIGEST_BYTES
    recorded = b"" if segment.record is None else _read(segment.record)
    if len(recorded) != length:
        recorded = b"".join(_computed(files, segment, files.check_part))
        files.check_unchanged(segment.number)
        if segment.record is not None:
            write_signed(segment.record, {"size": files.sizes[segment.number], "digests": recorded.hex()})
    return np.frombuffer(recorded, np.uint8).reshape(-1, DIGEST_BYTES)


def _read(record: Path) -> bytes:
    """Return the digests in a record; none if it is missing or damaged."""
    try:
        return bytes.fromhex(read_json(record, "digests")["digests"])
    except (FileNotFoundError, StateError, ValueError, TypeError):
        return b""


def _computed(files: MappedFiles, segment: _Segment, check: Callable[[int, int, memoryview], None]) -> Iterator[bytes]:
    path, size = files.paths[segment.number], files.sizes[segment.number]
    with path.open("rb") as file:  # read, not mapped: a file that is truncated meanwhile ends a read, not the process
        file.seek(segment.first * PART_BYTES)
        for part in range(segment.first, segment.stop):
            start = part * PART_BYTES
            content = file.read(PART_BYTES)
            if len(content) != min(PART_BYTES, size - start):
                raise DataError(f"{path}: changed while it was being read; run again when it is complete")
            check(segment.number, start, memoryview(content))
            yield digest_of(content)
