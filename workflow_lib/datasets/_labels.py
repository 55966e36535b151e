"""Targets of data that is read in place: computed once from labels in the files, then arrays of the index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from workflow_lib.data import merged_in_float32
from workflow_lib.data.source import numbering_hint
from workflow_lib.errors import DataError

MOST_CLASSES = 100_000


def to_index(
    values: Mapping[str, Sequence[Any]], kind: str, classes: Sequence[str], where: Callable[[str, int], str]
) -> dict[str, np.ndarray]:
    """Return arrays with the targets of each split and, for classes, their names.

    Classes are whole numbers from 0, or names. Raises DataError for a label that is neither, or not in `classes`;
    `where(split, row)` names its place.
    """
    if empty := [split for split, labels in values.items() if not len(labels)]:
        raise DataError(f"{empty[0]} has no sample")
    if kind == "regression":
        return {f"{split}.targets": _numbers(split, labels, where) for split, labels in values.items()}
    values = {split: _whole(split, labels, where) for split, labels in values.items()}
    names = list(classes) or _names(values["train"])
    number_of = {name: number for number, name in enumerate(names)}
    found = {}
    for split, labels in values.items():
        numbers = (
            _numbered(labels, len(names))
            if isinstance(labels, np.ndarray)
            else [_class(label, number_of, by_number=bool(classes)) for label in labels]
        )
        if not isinstance(numbers, np.ndarray) and None in numbers:
            row = numbers.index(None)
            wrong = labels[row].item() if isinstance(labels, np.ndarray) else labels[row]
            some = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise DataError(f"{where(split, row)}: the target is {wrong!r}; allowed: {some} (data.params.classes)")
        found[f"{split}.targets"] = np.array(numbers, np.int64)
    text = "\0".join(names).encode()
    return found | {"classes": np.frombuffer(text, np.uint8)}


def from_index(index: Mapping[str, np.ndarray], splits: Iterable[str]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the targets of each split, and the names of the classes."""
    targets = {split: index[f"{split}.targets"] for split in splits}
    names = bytes(index["classes"]).decode().split("\0") if "classes" in index else []
    return targets, tuple(names)


def _whole(split: str, labels: Sequence[Any], where: Callable[[str, int], str]) -> Sequence[Any]:
    """Return the labels, whole numbers as integers. Raises DataError for a fraction or a negative number."""
    is_array = isinstance(labels, np.ndarray)
    given = labels if is_array else [label if isinstance(label, int | float) else 0 for label in labels]
    numbers = np.asarray(given, np.float64)
    bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers >= 0) & (np.floor(numbers) == numbers)))
    if len(bad):
        hint = numbering_hint(numbers)
        raise DataError(
            f"{where(split, int(bad[0]))}: the target is {numbers[bad[0]]:g}; allowed for a class: a whole number from "
            f"0, or a name{f'; {hint}' if hint else ''}"
        )
    if isinstance(labels, np.ndarray):
        return labels.astype(np.int64)
    return [int(label) if isinstance(label, float) else label for label in labels]


def _numbers(split: str, labels: Sequence[Any], where: Callable[[str, int], str]) -> np.ndarray:
    if isinstance(labels, np.ndarray):
        numbers = labels.astype(np.float64)
    else:
        numbers = np.empty(len(labels))
        for row, label in enumerate(labels):
            try:
                numbers[row] = float(label)
            except (TypeError, ValueError) as error:
                raise DataError(f"{where(split, row)}: the target is {label!r}, not a number") from error
    if not np.isfinite(numbers).all():
        row = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise DataError(f"{where(split, row)}: the target is {numbers[row]}; every sample needs a finite target")
    if (merged := merged_in_float32(numbers, tolerance=0.05)) is not None:
        raise DataError(
            f"the targets {merged[0]!r} and {merged[1]!r} of `{split}` are equal in float32, in which models compute; "
            "subtract a constant from the targets, or use a larger unit"
        )
    return numbers.astype(np.float32)


def _numbered(labels: np.ndarray, classes: int) -> list[int | None] | np.ndarray:
    """Return whole numbers as they are; those beyond the classes as None."""
    bad = (labels < 0) | (labels >= classes)
    return [None if wrong else int(label) for label, wrong in zip(labels, bad, strict=True)] if bad.any() else labels


def _class(label: Any, number_of: Mapping[str, int], *, by_number: bool) -> int | None:
    """Return the number of a class, which is given by its name or, with `by_number`, its number; else None."""
    if by_number and isinstance(label, int):
        return label if 0 <= label < len(number_of) else None
    return number_of.get(str(label))


def _names(labels: Sequence[Any]) -> list[str]:
    """Return the names of the classes, sorted; for whole numbers those from 0 to the largest."""
    if isinstance(labels, np.ndarray) and len(labels) and 0 <= labels.min() <= labels.max() < MOST_CLASSES:
        return [str(number) for number in range(int(labels.max()) + 1)]
    different = set(labels)
    if all(isinstance(label, int) and 0 <= label < MOST_CLASSES for label in different):
        return [str(number) for number in range(max(different, default=0) + 1)]
    names = sorted(set(map(str, different)))
    if len(names) > MOST_CLASSES:
        raise DataError(f"train has {len(names):,} different targets; allowed: {MOST_CLASSES:,} classes")
    return names
