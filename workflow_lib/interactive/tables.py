"""Rows as data frames whose types do not depend on which values are missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

CURVE = ("epoch", "step")  # columns that every learning curve has
INT64 = range(-(2**63), 2**63)


def frame(
    rows: Iterable[Mapping[str, Any]],
    columns: Iterable[str] = (),
    *,
    whole: Iterable[str] = (),
    numbers: Iterable[str] = (),
    index: str | None = None,
) -> pandas.DataFrame:
    """Return a table of the rows, which begins with these columns; a value that a row lacks is missing.

    Args:
        rows: values by column
        columns: columns that the table has without rows, too
        whole: columns of whole numbers, of type Int64, where a missing value is NA
        numbers: columns of float64, where it is NaN. Other columns of whole numbers are int64, or Int64 if some are
            missing
        index: column that becomes the index
    """
    import pandas

    listed = list(rows)
    names = dict.fromkeys([*columns, *(name for row in listed for name in row)])
    floats, counts = {*numbers}, {*whole}
    table = {
        name: pandas.Series(values, dtype=_type(values, name in counts, name in floats))
        for name in names
        for values in [[row.get(name) for row in listed]]
    }
    made = pandas.DataFrame(table)
    return made if index is None else made.set_index(index)


def curve(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pandas.DataFrame:
    """Return a learning curve, a row for each validation, which begins with these columns."""
    return frame(rows, columns, numbers={name for row in rows for name in row} - {"run", *CURVE})


def _type(values: Sequence[Any], is_whole: bool, is_number: bool) -> str | None:
    """Return the type of a column; None if pandas finds the right one."""
    if is_whole or is_number:
        return "Int64" if is_whole else "float64"
    present = [value for value in values if value is not None]
    if present and all(type(value) is int and value in INT64 for value in present):
        return "int64" if len(present) == len(values) else "Int64"
    return None if present else "object"
