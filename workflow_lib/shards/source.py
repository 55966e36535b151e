"""What a data set gives: its targets, and a way to read its inputs a few rows at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workflow_lib.errors import DataError
from workflow_lib.plugins import Task


@dataclass(frozen=True)
class SourceFile:
    """A file of the person's, as it was when it was digested."""

    path: Path
    digest: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        """The file with the BLAKE2b of its bytes."""
        before = path.stat()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, blake2b).hexdigest()
        return cls(path, digest, before.st_size, before.st_mtime_ns)

    def is_unchanged(self) -> bool:
        """True while nobody has written to the file since."""
        try:
            now = self.path.stat()
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns) == (self.size, self.mtime_ns)


@dataclass(frozen=True)
class Feature:
    """A column of a table: of numbers, or with categories, whose numbers 0, 1, ... are stored."""

    name: str
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Source:
    """What `open_source` of a data set returns: the targets, and a way to read inputs a few at a time.

    task        what is learnt; `task(params)` of the data set says the same without reading anything
    targets     of each split that the data set brings; `train` is one of them, and a missing `val` or `test` is taken
                from it by `data.split_seed` and the fractions, stratified where there are classes
                classification: class numbers, int64 [n]; regression: float32 [n] or [n, outputs], finite;
                language: [n, 0], since the next token is the target
    read        `read(split, rows)` gives the inputs of these rows, which ascend: uint8 or float32
                [rows, channels, ...]; language: uint8 or int32 tokens [rows, context + 1]
    classes     names of the classes, in the order of their numbers
    features    the columns of a table; the inputs are [rows, features], and only here NaN stands for a missing number
    vocabulary  the tokens of a language, in the order of their numbers
    groups      a number for each row of train, int64 [n]: rows of one group are drawn into one split together, and
                not stratified
    scale       stored inputs are divided by it: 255 makes bytes 0 to 1
    files       what the data came from; a changed file is new data
    content     digest of inputs that come from no file
    close       gives back what `read` holds open
    is_thread_safe  several threads may `read` at once; otherwise one waits for the other, and large data takes longer
    """

    task: Task = "classification"
    targets: Mapping[str, np.ndarray]
    read: Callable[[str, np.ndarray], np.ndarray]
    classes: tuple[str, ...] = ()
    features: tuple[Feature, ...] = ()
    vocabulary: tuple[str, ...] = ()
    groups: np.ndarray | None = None
    scale: float = 1.0
    files: tuple[SourceFile, ...] = ()
    content: str = ""
    is_thread_safe: bool = False
    close: Callable[[], None] = lambda: None


def from_arrays(inputs: np.ndarray, targets: np.ndarray, *, classes: Sequence[str] = (), scale: float = 1.0) -> Source:
    """A source whose data is in memory already, in one piece: the splits are made from it.

    With names of classes the targets are class numbers; without, they are numbers to be predicted.
    """
    if len(inputs) != len(targets):
        raise DataError(f"from_arrays got {len(inputs)} inputs and {len(targets)} targets; each input has one target")
    return Source(
        task="classification" if classes else "regression",
        targets={"train": _numbered(targets, len(classes)) if classes else np.asarray(targets, dtype=np.float32)},
        read=lambda split, rows: inputs[rows],
        classes=tuple(classes),
        scale=scale,
        content=content_digest(inputs),
        is_thread_safe=True,
    )


def _numbered(targets: np.ndarray, classes: int) -> np.ndarray:
    """The class numbers as int64; other numbers are refused."""
    given = np.asarray(targets)
    numbers = given.astype(np.int64)
    bad = (numbers != given) | (numbers < 0) | (numbers >= classes)
    if given.ndim != 1 or bad.any():
        what = f"the target in row {(row := first_true(bad))} is {given[row]}" if bad.any() else f"shape {given.shape}"
        raise DataError(f"{what}; with {classes} names of classes, targets are whole numbers from 0 to {classes - 1}")
    return numbers


def read_rows(source: Source, origin: str, rows: np.ndarray) -> np.ndarray:
    """The inputs of these rows of one of the source's splits; what cannot be stored is refused."""
    inputs = np.asarray(source.read(origin, rows))
    types = (np.uint8, np.int32) if source.task == "language" else (np.uint8, np.float32)
    if inputs.dtype not in types or inputs.ndim < 2 or len(inputs) != len(rows):
        allowed = "uint8 or int32" if source.task == "language" else "uint8 or float32"
        shape = "context + 1" if source.task == "language" else "channels, ..."
        raise DataError(
            f"read(`{origin}`, {len(rows)} rows) gave {inputs.dtype} of shape {inputs.shape}; "
            f"inputs are {allowed} of shape ({len(rows)}, {shape})"
        )
    if source.task == "language":
        bad, what = (inputs < 0) | (inputs >= len(source.vocabulary)), "tokens outside of the vocabulary"
    elif source.features:
        bad, what = _unfit(inputs, source.features), "infinite values or categories without a name"
    else:
        bad, what = ~np.isfinite(inputs), "NaN or infinite values"
    if bad.any():
        raise DataError(f"the input in row {rows[first_true(bad)]} of `{origin}` has {what}")
    return np.ascontiguousarray(inputs)


def _unfit(inputs: np.ndarray, features: Sequence[Feature]) -> np.ndarray:
    """Where a table [rows, features] has something else than numbers, NaN, and numbers of categories."""
    if inputs.shape[1:] != (len(features),):
        raise DataError(f"inputs of shape {inputs.shape} do not have one column for each of {len(features)} features")
    bad = np.isinf(inputs)
    for column, feature in enumerate(features):
        if feature.categories:
            bad[:, column] = ~np.isin(inputs[:, column], np.arange(len(feature.categories)))
    return bad


def first_true(where: np.ndarray) -> int:
    """The first row with a true value in it."""
    return int(where.reshape(len(where), -1).any(axis=1).argmax())


def blake2b(data: bytes = b"") -> hashlib.blake2b:
    """The hash of all digests here."""
    return hashlib.blake2b(data, digest_size=16)


def content_digest(*arrays: np.ndarray) -> str:
    """BLAKE2b of shapes, types and values."""
    hasher = blake2b()
    for array in arrays:
        hasher.update(f"{array.dtype.str}{array.shape}".encode())
        hasher.update(bytes_of(np.ascontiguousarray(array)))
    return hasher.hexdigest()


def bytes_of(array: np.ndarray) -> memoryview:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data
