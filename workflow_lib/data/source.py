"""What a data set gives: its targets, and a way to read its inputs a few rows at a time."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    """A column of a table: of numbers, or with categories, whose numbers 0, 1, ... are stored.

    centre   subtracted from the numbers in float64 before they are stored as float32: 0 but for numbers that lie
             together far from 0, such as time stamps
    """

    name: str
    categories: tuple[str, ...] = ()
    centre: float = 0.0


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
    learn_from  `learn_from(rows)` gives the source again, as known from these rows of train alone: those that are left
                of it where splits are drawn; None where it makes no difference
    classes     names of the classes, in the order of their numbers
    features    the columns of a table; the inputs are [rows, features], and only here NaN stands for a missing number
    vocabulary  the tokens of a language, in the order of their numbers
    groups      a number for each row of train, int64 [n]: rows of one group are drawn into one split together, and
                not stratified
    scale       stored inputs are divided by it: 255 makes bytes 0 to 1
    files       what the data came from; a changed file is new data
    content     digest of inputs that come from no file
    row_digests  of each split, for each row the digest of the one file that it is read from, where it is so: a shard of
                rows that are as they were is taken over from earlier data of these settings
    row_name    `row_name(split, row)` is what messages call a row: its number, or the file that it is read from
    close       gives back what `read` holds open
    is_thread_safe  several threads may `read` at once; otherwise one waits for the other, and large data takes longer
    """

    task: Task = "classification"
    targets: Mapping[str, np.ndarray]
    read: Callable[[str, np.ndarray], np.ndarray]
    learn_from: Callable[[np.ndarray], Source] | None = None
    classes: tuple[str, ...] = ()
    features: tuple[Feature, ...] = ()
    vocabulary: tuple[str, ...] = ()
    groups: np.ndarray | None = None
    scale: float = 1.0
    files: tuple[SourceFile, ...] = ()
    content: str = ""
    row_digests: Mapping[str, Sequence[str]] = field(default_factory=dict)
    row_name: Callable[[str, int], str] = lambda split, row: f"row {row} of `{split}`"
    is_thread_safe: bool = False
    close: Callable[[], None] = lambda: None


def from_arrays(inputs: np.ndarray, targets: np.ndarray, *, classes: Sequence[str] = (), scale: float = 1.0) -> Source:
    """A source whose data is in memory already, in one piece: the splits are made from it.

    With names of classes the targets are class numbers; without, they are numbers to be predicted.
    """
    if not _is_array(inputs, np.uint8, np.float32):
        raise DataError(f"from_arrays got {shown(inputs)}; inputs are uint8 or float32 of shape (n, channels, ...)")
    if len(inputs) != len(targets):
        raise DataError(f"from_arrays got {len(inputs)} inputs and {len(targets)} targets; each input has one target")
    return Source(
        task="classification" if classes else "regression",
        targets={"train": numbered("train", targets, len(classes)) if classes else np.asarray(targets)},
        read=lambda split, rows: inputs[rows],
        classes=tuple(classes),
        scale=scale,
        content=content_digest(inputs),
        is_thread_safe=True,
    )


def numbered(split: str, targets: np.ndarray, classes: int) -> np.ndarray:
    """The class numbers as int64; anything else is refused."""
    given = np.asarray(targets)
    allowed = f"with {classes} names of classes, targets are whole numbers from 0 to {classes - 1}"
    if given.ndim != 1 or given.dtype.kind not in "biuf":
        raise DataError(f"the targets of `{split}` are {shown(given)}; {allowed}, of shape (n,)")
    bad = ~np.isin(given, np.arange(classes))
    if bad.any():
        advice = f"; {hint}" if (hint := numbering_hint(given)) else ""
        raise DataError(f"the target in row {(row := first_true(bad))} of `{split}` is {given[row]}; {allowed}{advice}")
    return given.astype(np.int64)


def numbering_hint(labels: np.ndarray) -> str:
    """Return what to do with labels that are numbered in a known way that is not 0, 1, ...; else nothing."""
    different = np.unique(labels)
    low, high = different[0], different[-1]
    if different.tolist() == [-1, 1]:
        return "labels are -1 and 1: give 0 and 1 instead"
    if low >= 1 and len(different) > 1 and high - low + 1 == len(different):
        return f"labels are {low:g} to {high:g}; classes are numbered from 0: subtract {low:g}"
    return ""


def shown(value: Any) -> str:
    """What a person's code gave, in a few words."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return "None" if value is None else f"a {type(value).__name__}"


def _is_array(inputs: Any, *kinds: type) -> bool:
    """Whether it is an array of one of these types, with a second dimension, and something in each row."""
    return isinstance(inputs, np.ndarray) and inputs.dtype in kinds and inputs.ndim >= 2 and 0 not in inputs.shape[1:]


def refuse_unfit(source: Any) -> None:
    """What `open_source` gave is a source, and each field but the arrays has what it may have."""
    if not isinstance(source, Source):
        raise DataError(f"open_source() gave {shown(source)}; it is to give a Source of workflow_lib.data")
    kinds = {"classes": str, "vocabulary": str, "features": Feature, "files": SourceFile}
    for name, kind in kinds.items():
        values = getattr(source, name)
        if not isinstance(values, tuple | list) or not all(isinstance(value, kind) for value in values):
            raise DataError(f"Source.{name} is {values!r:.60}; allowed: a tuple of {kind.__name__}")
    for name in ("classes", "vocabulary"):
        if twice := [value for value, count in Counter(getattr(source, name)).items() if count > 1]:
            raise DataError(f"Source.{name} has `{twice[0]:.60}` more than once; each has a name of its own")
    if not isinstance(source.content, str):
        raise DataError(f"Source.content is {source.content!r:.60}; allowed: a str, as content_digest gives")
    if not isinstance(source.scale, int | float) or not 0 < source.scale < math.inf:
        raise DataError(f"Source.scale is {source.scale!r:.60}; allowed: a number above 0")
    if source.task == "classification" and len(source.classes) < 2:
        raise DataError(f"Source.classes is {source.classes!r:.60}; a classification needs the names of at least two")


def read_rows(source: Source, origin: str, rows: np.ndarray) -> np.ndarray:
    """The inputs of these rows of one of the source's splits; what cannot be stored is refused."""
    inputs = source.read(origin, rows)
    types = (np.uint8, np.int32) if source.task == "language" else (np.uint8, np.float32)
    if not _is_array(inputs, *types) or len(inputs) != len(rows):
        allowed = "uint8 or int32" if source.task == "language" else "uint8 or float32"
        shape = "context + 1" if source.task == "language" else "channels, ..."
        raise DataError(
            f"read(`{origin}`, {len(rows)} rows) gave {shown(inputs)}; "
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


def merged_in_float32(values: np.ndarray, *, tolerance: float = 0.0) -> tuple[Any, Any] | None:
    """Two different numbers that are one as float32, where more than this part of the numbers are; else None."""
    different = np.unique(values)
    same = np.flatnonzero(np.diff(different.astype(np.float32)) == 0)
    if len(same) <= tolerance * len(different):
        return None
    return different[same[0]].item(), different[same[0] + 1].item()


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
