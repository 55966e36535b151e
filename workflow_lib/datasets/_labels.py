"""Targets of data that is read in place: computed once from labels in the files, then arrays of the index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from workflow_lib.data import merged_in_float32
from workflow_lib.errors import DataError

MOST_CLASSES = 100_000


def to_index(values: Mapping[str, Sequence[Any]], kind: str, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Return arrays with the targets of each split and, for classes, their names.

    Classes are whole numbers from 0, or names. Raises DataError for a label that is neither, or not in `classes`.
    """
    if kind == "regression":
        return {f"{split}.targets": _numbers(split, labels) for split, labels in values.items()}
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
            raise DataError(f"the target in row {row} of `{split}` is {wrong!r}; allowed: {some} (data.params.classes)")
        found[f"{split}.targets"] = np.array(numbers, np.int64)
    text = "\0".join(names).encode()
    return found | {"classes": np.frombuffer(text, np.uint8)}


def from_index(index: Mapping[str, np.ndarray], splits: Iterable[str]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the targets of each split, and the names of the classes."""
    targets = {split: index[f"{split}.targets"] for split in splits}
    names = bytes(index["classes"]).decode().split("\0") if "classes" in index else []
    return targets, tuple(names)


def _numbers(split: str, labels: Sequence[Any]) -> np.ndarray:
    if not isinstance(labels, np.ndarray):
        for row, label in enumerate(labels):
            if isinstance(label, bool) or not isinstance(label, int | float):
                raise DataError(f"the target in row {row} of `{split}` is {label!r}, not a number")
    numbers = np.asarray(labels, np.float64)
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
