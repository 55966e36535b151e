"""Rows of a table for a trained model: read with the categories and the missing values that training learned."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from workflow_lib.data import Feature, Inputs
from workflow_lib.data.inputs import Named
from workflow_lib.datasets._columns import ALWAYS, ColumnEncoding, mark_of
from workflow_lib.datasets._notation import Notation
from workflow_lib.datasets._tables import Piece, Table
from workflow_lib.datasets._values import SHOWN, ColumnReader
from workflow_lib.errors import DataError

log = logging.getLogger(__name__)


def encodings_of(features: Sequence[Feature], notation: Notation) -> list[ColumnEncoding]:
    """Return the encoding of each column, from the features that it became in the training."""
    found: list[ColumnEncoding] = []
    left = list(features)
    while left:
        feature = left.pop(0)
        has_missing = bool(left) and not feature.categories and left[0] == Feature(mark_of(feature.name))
        if has_missing:
            left.pop(0)
        found.append(ColumnEncoding(feature.name, notation, feature.categories, has_missing, feature.centre))
    return found


def open_rows(table: Table, features: Sequence[Feature], notation: Notation) -> Inputs:
    """Return the rows of the table, named by their number from 0. Raises DataError for a column that it lacks."""
    encodings = encodings_of(features, notation)
    names = [encoding.name for encoding in encodings]
    for name in names:
        check_usable(table, name, names)

    def read(size: int) -> Iterator[Named]:
        columns = [_Column(encoding, ColumnReader(table.path, encoding.name, notation)) for encoding in encodings]
        for piece in table.scan(names):
            parts = [part for column in columns for part in column.read(piece)]
            yield {"row": piece.rows}, np.stack(parts, axis=1)
        for column in columns:
            column.warn(table)

    return Inputs(read=read)


def check_usable(table: Table, name: str, needed: Sequence[str]) -> None:
    """Raise DataError unless the table has the column once, with values that can be read."""
    if name not in table.columns:
        near = difflib.get_close_matches(name, table.columns, 1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        if len(table.columns) == 1 and needed[1:]:
            hint = f"; its only column is `{table.columns[0]:.60}`: it must have the delimiter of the training"
        raise DataError(
            f"{table.path}: has no column `{name}`, from which the model predicts{hint} (it needs: {', '.join(needed)})"
        )
    if table.columns.count(name) > 1:
        raise DataError(f"{table.path}: {table.columns.count(name)} columns are named `{name}`; rename them")
    if name in table.unusable:
        allowed = "allowed: numbers, strings, booleans"
        raise DataError(f"{table.path}: column `{name}` has type {table.unusable[name]}; {allowed}")


@dataclass
class _Column:
    """A column while it is read: counts of what training did not have, and some of the unknown categories."""

    encoding: ColumnEncoding
    reader: ColumnReader
    missing: int = 0
    unknown: int = 0
    some: dict[str, None] = field(default_factory=dict)

    def read(self, piece: Piece) -> list[np.ndarray]:
        """Return the features of these rows. Raises DataError for a text in a column of numbers."""
        if not self.encoding.categories:
            numbers, is_text = self.reader.numbers(piece)
            if is_text.any():
                row = int(is_text.argmax())
                text = piece.values[self.encoding.name][row]
                self.reader.reject(piece, row, f"`{text}` is not a number, as all values were in the training")
            if not self.encoding.has_missing:
                self.missing += int(np.isnan(numbers).sum())
        parts = self.encoding.columns(piece)
        if self.encoding.categories:
            values = piece.values[self.encoding.name]
            rows = np.flatnonzero(parts[0] == 1).tolist()
            self.unknown += len(rows)
            for row in rows:
                if len(self.some) < SHOWN:
                    self.some[f"`{values[row]}`"] = None
        return parts

    def warn(self, table: Table) -> None:
        """Log a warning for values that training did not have."""
        where = f"{table.path}, column `{self.encoding.name}`"
        if self.missing:
            log.warning(
                "%s: %d numbers are missing, but none was in the training: its mean is used", where, self.missing
            )
        if self.unknown:
            known = ", ".join(f"`{name}`" for name in self.encoding.categories[len(ALWAYS) :][:SHOWN])
            log.warning(
                "%s: %d rows have categories that train did not have, such as %s (it had %s, ...); they are read as "
                "`%s`, about which the model may have learned nothing",
                where, self.unknown, ", ".join(self.some), known, ALWAYS[1],
            )  # fmt: skip
