"""The source that a data set returns: targets in memory, and a function that reads inputs a few rows at a time.

Masks are as large as the inputs, so they are not in memory: a second function reads them with the inputs.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from workflow_lib.data.mapped_files import MappedFiles
from workflow_lib.errors import DataError
from workflow_lib.files import blake2b
from workflow_lib.plugins import Targets, Task, task_facts

IGNORED = 255  # in a mask: a pixel that neither the loss nor a metric counts
MOST_MASK_CLASSES = IGNORED


@dataclass(frozen=True)
class SourceFile:
    """A user's file, with its state when its digest was computed."""

    path: Path
    digest: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        """Return the file with the BLAKE2b digest of its bytes."""
        before = path.stat()  # before reading, so that a write during it shows in `is_unchanged`
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, blake2b).hexdigest()
        return cls(path, digest, before.st_size, before.st_mtime_ns)

    def is_unchanged(self) -> bool:
        """Return True if size and modification time are still the same."""
        try:
            now = self.path.stat()
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns) == (self.size, self.mtime_ns)


@dataclass(frozen=True)
class Feature:
    """A column of a table: numeric, or categorical, stored as the numbers 0, 1, ... of its categories.

    Attributes:
        centre: subtracted in float64 before the numbers are stored as float32; not 0 only if the numbers are
            close together and far from 0, such as time stamps
    """

    name: str
    categories: tuple[str, ...] = ()
    centre: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Source:
    """The targets of a data set, and a function that reads its inputs: `open_source` of a data set returns it.

    Attributes:
        task: name of a task, or its import path; `task(params)` of the data set returns the same
        targets: one array for each split of the data set; `train` is required. A missing `val` or `test` is
            drawn from `train` by `data.split_seed` and the fractions, stratified by class. classification:
            class numbers, int64 [n]; multilabel: 0 or 1 for each class [n, classes]; regression: finite float32
            [n] or [n, outputs]; language: [n, 0], since the next token is the target; segmentation: [n, 0], since
            `read_targets` reads the masks
        read: `read(split, rows)` returns the inputs of these rows, which are ascending: uint8 or float32 [rows,
            channels, ...]; language: uint8 or int32 tokens [rows, context + 1]; texts with classes: uint8 or int32
            tokens [rows, length], of which token 0 fills the places after the end of a text
        read_targets: segmentation: `read_targets(split, rows)` returns the mask of each of these rows, uint8 [rows,
            height, width]: the number of the class of each pixel, or IGNORED
        learn_from: `learn_from(rows)` returns the source with what it learns, such as categories, learned from
            these rows of train only; it is called with the rows that remain after splits were drawn. None: the
            source learns nothing from the rows
        classes: names of the classes, in the order of their numbers
        outputs: names of the numbers to predict, for the report; without them they are numbered
        features: the columns of a table; inputs are [rows, features]. Only tables may have NaN: a missing
            number
        vocabulary: the tokens of texts, in the order of their numbers; the inputs are then tokens
        tokenizer: content of the tokenizer.json that made the tokens, which is stored with the data
        groups: a number for each row of train, int64 [n]: the rows of a group are drawn into the same split,
            and the draw is not stratified
        group_rows: this many consecutive rows of train are drawn into the same split, such as passages of a text
        mapped: files that `read` reads in place: the data is not copied into shards, and `open_source` is called in
            every training. A data set whose inputs are computed from the number of the row has none: `MappedFiles(())`
        index: of data that is read in place: arrays that take long to compute, such as the places of the rows in the
            files. `preprocess` stores them, and they are given to `open_source(params, root, index)` from then on
        scale: divisor of stored inputs: 255 maps bytes to 0..1
        files: the source files; a changed file is new data
        content: digest of inputs that come from no file
        row_digests: for each split and row the digest of the one file that the row is read from, if there is
            one: shards whose rows did not change are linked from earlier data with the same settings
        row_name: `row_name(split, row)` returns the name of a row in messages: its number or its file
        sample_names: `sample_names(split, rows)` returns columns that name these rows in `splits.csv` and
            `predictions.csv`, such as `file`, a value for each row; the same columns for every split. None: the number
            of the row, and if the data set has several splits, `of`, the one in which it is
        close: closes what `read` keeps open
        is_thread_safe: several threads may call `read` and `read_targets` at once; otherwise they take turns, which
            is slower for large data
    """

    task: Task = "classification"
    targets: Mapping[str, np.ndarray]
    read: Callable[[str, np.ndarray], np.ndarray]
    read_targets: Callable[[str, np.ndarray], np.ndarray] | None = None
    learn_from: Callable[[np.ndarray], Source] | None = None
    outputs: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    features: tuple[Feature, ...] = ()
    vocabulary: tuple[str, ...] = ()
    tokenizer: str = ""
    groups: np.ndarray | None = None
    group_rows: int = 1
    mapped: MappedFiles | None = None
    index: Mapping[str, np.ndarray] = field(default_factory=dict)
    scale: float = 1.0
    files: tuple[SourceFile, ...] = ()
    content: str = ""
    row_digests: Mapping[str, Sequence[str]] = field(default_factory=dict)
    row_name: Callable[[str, int], str] = lambda split, row: f"row {row} of `{split}`"
    sample_names: Callable[[str, np.ndarray], Mapping[str, Sequence[Any] | np.ndarray]] | None = None
    is_thread_safe: bool = False
    close: Callable[[], None] = lambda: None

    def names_of(self, split: str, rows: np.ndarray) -> Mapping[str, Sequence[Any] | np.ndarray]:
        """Return the columns that name these rows of a split."""
        if self.sample_names is not None:
            return self.sample_names(split, rows)
        return {"row": rows} if set(self.targets) == {"train"} else {"of": [split] * len(rows), "row": rows}

    @property
    def kind(self) -> Targets:
        """Storage of the targets, determined by the task."""
        return task_facts(self.task).targets

    @property
    def has_tokens(self) -> bool:
        """True if the inputs are tokens of texts, which are not normalised."""
        return bool(self.vocabulary) or self.kind == "tokens"


def from_arrays(
    inputs: np.ndarray, targets: np.ndarray, *, classes: Sequence[str] = (), scale: float = 1.0, task: Task = ""
) -> Source:
    """Return a source of arrays in memory; all splits are drawn from them.

    With `classes` the targets are class numbers; without, they are numbers to predict. The task is classification or
    regression, unless another one is given: multilabel takes 0 or 1 for each class [n, classes], segmentation masks
    [n, height, width] of class numbers and IGNORED.
    """
    if not _is_array(inputs, np.uint8, np.float32):
        given = type_and_shape(inputs)
        raise DataError(f"from_arrays got {given}; allowed: inputs of uint8 or float32, shape (n, channels, ...)")
    if len(inputs) != len(targets):
        raise DataError(f"from_arrays got {len(inputs)} inputs and {len(targets)} targets; allowed: one for each input")
    task = task or ("classification" if classes else "regression")
    arrays, kind = np.asarray(targets), task_facts(task).targets
    source = Source(
        task=task,
        targets={"train": class_numbers("train", arrays, len(classes)) if kind == "classes" else arrays},
        read=lambda split, rows: inputs[rows],
        classes=tuple(classes),
        scale=scale,
        content=content_digest(inputs),
        is_thread_safe=True,
    )
    if kind != "masks":
        return source
    return replace(
        source,
        targets={"train": np.empty((len(arrays), 0), np.int64)},
        read_targets=lambda split, rows: arrays[rows],
        content=content_digest(inputs, arrays),
    )


def class_numbers(split: str, targets: np.ndarray, classes: int) -> np.ndarray:
    """Return the class numbers as int64. Raises DataError for any other value."""
    given = np.asarray(targets)
    allowed = f"allowed with {classes} classes: whole numbers from 0 to {classes - 1}"
    if given.ndim != 1 or given.dtype.kind not in "biuf":
        raise DataError(f"the targets of `{split}` are {type_and_shape(given)}; {allowed}, of shape (n,)")
    bad = ~np.isin(given, np.arange(classes))
    if bad.any():
        advice = f"; {hint}" if (hint := numbering_hint(given)) else ""
        raise DataError(f"the target in row {(row := first_true(bad))} of `{split}` is {given[row]}; {allowed}{advice}")
    return given.astype(np.int64)


def labels(split: str, targets: np.ndarray, classes: int) -> np.ndarray:
    """Return the labels of each sample as uint8 [n, classes]. Raises DataError for any value but 0 and 1."""
    allowed = f"allowed: 0 or 1 for each of {classes} classes, of shape (n, {classes})"
    if targets.ndim != 2 or targets.shape[1] != classes:
        raise DataError(f"the targets of `{split}` are {type_and_shape(targets)}; {allowed}")
    bad = ~np.isin(targets, (0, 1))
    if bad.any():
        row = first_true(bad)
        raise DataError(f"the target in row {row} of `{split}` has the value {targets[row][bad[row]][0]}; {allowed}")
    return np.ascontiguousarray(targets, dtype=np.uint8)


def numbering_hint(labels: np.ndarray) -> str:
    """Return advice for labels -1 and 1, or consecutive labels that do not start at 0; otherwise an empty text."""
    different = np.unique(labels)
    low, high = different[0], different[-1]
    if different.tolist() == [-1, 1]:
        return "labels are -1 and 1: give 0 and 1 instead"
    if low >= 1 and len(different) > 1 and high - low + 1 == len(different):
        return f"labels are {low:g} to {high:g}; classes are numbered from 0: subtract {low:g}"
    return ""


def type_and_shape(value: Any) -> str:
    """Return the type of a value that user code returned, and the shape of an array, for a message."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return "None" if value is None else f"a {type(value).__name__}"


def _is_array(inputs: Any, *kinds: type) -> bool:
    """Return True for an array of one of these types with at least two dimensions and rows that are not empty."""
    return isinstance(inputs, np.ndarray) and inputs.dtype in kinds and inputs.ndim >= 2 and 0 not in inputs.shape[1:]


def check_source(source: Any) -> None:
    """Raise DataError if the result of `open_source` is not a Source, or a field other than the arrays is invalid."""
    if not isinstance(source, Source):
        raise DataError(f"open_source() gave {type_and_shape(source)}; allowed: a Source of workflow_lib.data")
    kinds = {"classes": str, "outputs": str, "vocabulary": str, "features": Feature, "files": SourceFile}
    for name, kind in kinds.items():
        values = getattr(source, name)
        if not isinstance(values, tuple | list) or not all(isinstance(value, kind) for value in values):
            raise DataError(f"Source.{name} is {values!r:.60}; allowed: a tuple of {kind.__name__}")
    for name in ("classes", "outputs", "vocabulary"):
        if twice := [value for value, count in Counter(getattr(source, name)).items() if count > 1]:
            raise DataError(f"Source.{name} has `{twice[0]:.60}` more than once; names must be unique")
    if source.mapped is not None:
        _check_in_place(source)
    if not isinstance(source.content, str):
        raise DataError(f"Source.content is {source.content!r:.60}; allowed: a str, such as content_digest returns")
    if not isinstance(source.scale, int | float) or not 0 < source.scale < math.inf:
        raise DataError(f"Source.scale is {source.scale!r:.60}; allowed: a number above 0")
    least = {"classes": 2, "labels": 1, "masks": 2}.get(source.kind, 0)
    if len(source.classes) < least:
        names = "at least two names" if least == 2 else "at least one name"
        raise DataError(f"Source.classes is {source.classes!r:.60}; allowed for a {source.task}: {names}")
    if (source.kind == "masks") is not (source.read_targets is not None):
        raise DataError(f"Source.read_targets: a {source.task} needs {_READS[source.kind == 'masks']}")
    if source.kind == "masks" and source.mapped is not None:
        raise DataError("Source.mapped: masks are not read in place; leave it out, and the data is copied into shards")
    if source.kind == "masks" and len(source.classes) > MOST_MASK_CLASSES:
        raise DataError(f"Source.classes has {len(source.classes)} names; allowed in masks: {MOST_MASK_CLASSES}")


_READS = {True: "it: read_targets(split, rows) returns the masks", False: "no read_targets; its targets are arrays"}


def _check_in_place(source: Source) -> None:
    if not isinstance(source.mapped, MappedFiles):
        raise DataError(
            f"Source.mapped is {type_and_shape(source.mapped)}; allowed: a MappedFiles of workflow_lib.data"
        )
    if source.files or source.row_digests or source.learn_from is not None:
        raise DataError("Source.files, row_digests and learn_from are not for data that is read in place")


def read_rows(source: Source, origin: str, rows: np.ndarray) -> np.ndarray:
    """Return the inputs of these rows of a split of the source. Raises DataError for inputs that cannot be stored."""
    inputs = source.read(origin, rows)
    types = (np.uint8, np.int32) if source.has_tokens else (np.uint8, np.float32)
    if not _is_array(inputs, *types) or len(inputs) != len(rows):
        allowed = "uint8 or int32" if source.has_tokens else "uint8 or float32"
        shape = "context + 1" if source.kind == "tokens" else "length" if source.has_tokens else "channels, ..."
        raise DataError(
            f"read(`{origin}`, {len(rows)} rows) gave {type_and_shape(inputs)}; "
            f"allowed: {allowed} of shape ({len(rows)}, {shape})"
        )
    if source.has_tokens:
        bad, what = (inputs < 0) | (inputs >= len(source.vocabulary)), "tokens that are not in the vocabulary"
    elif source.features:
        bad, what = _bad_values(inputs, source.features), "infinite values or categories without a name"
    else:
        bad, what = ~np.isfinite(inputs), "NaN or infinite values"
    if bad.any():
        raise DataError(f"the input in row {rows[first_true(bad)]} of `{origin}` has {what}")
    return np.ascontiguousarray(inputs)


def read_masks(source: Source, origin: str, rows: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return the masks of these rows, uint8 [rows, height, width]. Raises DataError unless they fit inputs and classes.

    `size` is the height and width of the inputs.
    """
    if source.read_targets is None:
        raise DataError(f"Source.read_targets: a {source.task} needs {_READS[True]}")
    masks = source.read_targets(origin, rows)
    if not isinstance(masks, np.ndarray) or masks.dtype.kind not in "bui" or masks.shape != (len(rows), *size):
        given = f"read_targets(`{origin}`, {len(rows)} rows) gave {type_and_shape(masks)}"
        raise DataError(f"{given}; allowed: class numbers of shape {(len(rows), *size)}, one for each pixel")
    bad = ((masks < 0) | (masks >= len(source.classes))) & (masks != IGNORED)
    if bad.any():
        row = first_true(bad)
        raise DataError(
            f"the mask of {source.row_name(origin, int(rows[row]))} has the value {masks[row][bad[row]][0]}; allowed: "
            f"0 to {len(source.classes) - 1}, and {IGNORED} for a pixel to ignore"
        )
    return np.ascontiguousarray(masks, dtype=np.uint8)


def _bad_values(inputs: np.ndarray, features: Sequence[Feature]) -> np.ndarray:
    """Return a mask [rows, features] of infinite numbers and of values that are not the number of a category."""
    if inputs.shape[1:] != (len(features),):
        raise DataError(f"inputs of shape {inputs.shape} do not have one column for each of {len(features)} features")
    bad = np.isinf(inputs)
    for column, feature in enumerate(features):
        if feature.categories:
            bad[:, column] = ~np.isin(inputs[:, column], np.arange(len(feature.categories)))
    return bad


def first_true(where: np.ndarray) -> int:
    """Return the number of the first row that contains a true value."""
    return int(where.reshape(len(where), -1).any(axis=1).argmax())


def content_digest(*arrays: np.ndarray) -> str:
    """Return the BLAKE2b digest of types, shapes and values."""
    hasher = blake2b()
    for array in arrays:
        hasher.update(f"{array.dtype.str}{array.shape}".encode())
        hasher.update(bytes_of(np.ascontiguousarray(array)))
    return hasher.hexdigest()


def bytes_of(array: np.ndarray) -> memoryview:
    """Return the memory of a contiguous array, without copying it."""
    return array.reshape(-1).view(np.uint8).data
