"""Lines on columns that may mean something else than a guess takes them for; nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MOST_CLASSES = 1000
FEWEST = 3  # equal numbers that may stand for a missing value
SEPARATORS = (";", "|", ",")


def of_columns(frame: pd.DataFrame, columns: Sequence[str]) -> Iterator[str]:
    """Yield lines on labels beside the target, and on numbers such as -999 that stand for a missing value."""
    import pandas as pd

    last: list[str] = []
    for name in reversed(frame.columns):
        if set(frame[name].unique()) != {0, 1}:
            break
        last.insert(0, name)
    if len(last) > 1:
        yield (
            f"the last columns ({', '.join(last)}) have only 0 and 1: if they are labels, set data.params.task: "
            "multilabel and data.params.target to a list of them"
        )
    for name in columns:
        if pd.api.types.is_numeric_dtype(frame[name]) and (number := _stand_in(frame[name])) is not None:
            yield (
                f"column {name!r}: {number:g} is far from all other numbers, and stands in several rows: if it means a "
                "missing value, add it to data.params.missing as it is written"
            )


def of_numbers(target: pd.Series[Any]) -> Iterator[str]:
    """Yield a line if the numbers to predict could be classes."""
    values = target.dropna()
    different = int(values.nunique())
    if (values % 1 == 0).all() and different <= MOST_CLASSES and different * 2 <= len(values):
        yield (
            f"{target.name!r} has {different} different whole numbers: if they are classes, set data.params.task: "
            "classification"
        )


def of_names(target: str, classes: Sequence[str]) -> Iterator[str]:
    """Yield a line if most classes seem to consist of several labels, such as `red;big`."""
    for separator in SEPARATORS:
        several = [name for name in classes if separator in name.strip(separator)]
        parts = {part.strip() for name in classes for part in name.split(separator)}
        if len(several) * 2 > len(classes) and len(parts) < 2 * len(classes):
            yield (
                f"{target!r} seems to have several labels in a value ({several[0]!r}): make a column of 0 and 1 for "
                "each, and set data.params.task: multilabel"
            )
            return


def _stand_in(column: pd.Series[Any]) -> float | None:
    """Return the smallest or largest number if it is repeated, and farther from the others than these are apart."""
    values = column.dropna()
    counts = values.value_counts()
    if len(counts) < 3:
        return None
    for number in (counts.index.min(), counts.index.max()):
        others = counts.index[counts.index != number]
        low, high = others.min(), others.max()
        if counts[number] >= FEWEST and min(abs(number - low), abs(number - high)) > 2 * (high - low):
            return float(number)
    return None
