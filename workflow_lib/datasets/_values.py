"""Conversion of a table's values to numbers and names, with errors that give the place of a value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import NoReturn

import numpy as np

from workflow_lib.datasets._notation import Notation, advice, is_number, name_of
from workflow_lib.datasets._tables import Piece, Values
from workflow_lib.errors import DataError

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).tiny)  # smaller numbers have fewer digits in float32, or become 0
FEW_ROWS = 10  # with fewer rows, texts that occur only once are normal
SHOWN = 5  # categories of a column that the log lists


def parse_numbers(values: Values, notation: Notation) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers, float64 with NaN for anything else, and a mask of the texts that are not missing values."""
    if isinstance(values, np.ndarray):
        return values, np.zeros(len(values), bool)
    numbers, is_text = np.full(len(values), np.nan), np.zeros(len(values), bool)
    for place, value in enumerate(values):
        if value is not None and value not in notation.missing:
            if (plain := notation.plain(value)) is not None:
                numbers[place] = float(plain)
            else:
                is_text[place] = True
    return numbers, is_text


def names_of(values: Values, notation: Notation) -> list[str | None]:
    """Return the values as names, None for missing ones; equal numbers have the same name in any notation."""
    if isinstance(values, np.ndarray):
        return [None if math.isnan(value) else _name_of_float(value, notation) for value in values.tolist()]
    return [None if value is None or value in notation.missing else notation.name(value) for value in values]


def _name_of_float(value: float, notation: Notation) -> str:
    return str(int(value)) if value.is_integer() else format(Decimal(repr(value)), "f").replace(".", notation.decimal)


def sort_names(names: Iterable[str], notation: Notation) -> tuple[str, ...]:
    """Return the names sorted: numerically if all are numbers, else alphabetically."""
    listed = sorted(names)
    numbers = {name: float(plain) for name in listed if (plain := notation.plain(name)) is not None}
    return tuple(sorted(listed, key=numbers.__getitem__)) if len(numbers) == len(listed) else tuple(listed)


def is_inexact(text: str | None) -> bool:
    """Return True for a whole number, written without an exponent, that float64 cannot represent.

    A number with an exponent was a float already: programs write just enough digits to identify it.
    """
    if text is None or len(text) < 16 or "e" in text.lower() or not is_number(text):
        return False
    whole = name_of(text).lstrip("-")
    return whole.isdigit() and int(float(whole)) != int(whole)


@dataclass
class ColumnReader:
    """Reads a column piece by piece; values that cannot be used are rejected with their place."""

    path: Path
    name: str
    notation: Notation
    is_listed: bool = False  # in data.params.categorical: values are names, even if they look like numbers
    is_first: bool = True  # the first scan of the whole file checks and logs; later scans only learn
    small: str = field(default="", kw_only=True)  # the first number below SMALLEST, with its place

    def reject(self, piece: Piece, row: int, what: str) -> NoReturn:
        """Raise DataError for a row of the piece."""
        raise DataError(f"{self.path}, {piece.places[row]}, column `{self.name}`: {what}")

    def _reject_missing(self, piece: Piece, row: int) -> NoReturn:
        values = piece.values[self.name]
        text = None if isinstance(values, np.ndarray) else values[row]
        listed = f"; if `{text}` is a class, remove it from data.params.missing" if text else ""
        self.reject(piece, row, f"the target is missing; remove the row, or fill it{listed}")

    def _advice(self, numbers: Sequence[str]) -> str:
        """Return the settings that read these texts as numbers, as the end of a message; empty if there are none."""
        return f"; {found}" if (found := advice(numbers)) else ""

    def numbers(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers and mask as `parse_numbers`. Raises DataError for a number that float32 cannot represent."""
        values = piece.values[self.name]
        numbers, is_text = parse_numbers(values, self.notation)
        if (large := np.abs(numbers) > LARGEST).any():
            row = int(large.argmax())
            self.reject(piece, row, f"{numbers[row]:g} is too large; allowed: up to {LARGEST:g}")
        if not self.small and (is_small := (numbers != 0) & (np.abs(numbers) < SMALLEST)).any():
            self.small = f"{numbers[row := int(is_small.argmax())]:g} in {piece.places[row]}"
        if not isinstance(values, np.ndarray):
            self._check_underflow(piece, values, numbers)
            self._check_exact(piece, values, numbers)
        return numbers, is_text

    def _check_underflow(self, piece: Piece, values: Sequence[str | None], numbers: np.ndarray) -> None:
        for row in np.flatnonzero(numbers == 0).tolist():
            text = values[row] or ""
            if re.search("[1-9]", re.split("[eE]", text)[0]):
                self.reject(piece, row, f"{text} is too close to 0: float64 rounds it to 0; use its logarithm")

    def _check_exact(self, piece: Piece, values: Sequence[str | None], numbers: np.ndarray) -> None:
        for row in np.flatnonzero(np.abs(numbers) >= 2**53).tolist():
            if is_inexact(self.notation.plain(values[row] or "")):
                self.reject(
                    piece,
                    row,
                    f"float64 cannot represent the whole number {values[row]} ({int(numbers[row])} is the nearest); "
                    "list the column in data.params.categorical if its values are names, or leave it out",
                )

    def warnings(self) -> Iterator[str]:
        """Yield a warning if float32 does not keep the digits of some numbers."""
        if self.small:
            yield (
                f"{self.path}, column `{self.name}`: {self.small}: numbers closer to 0 than {SMALLEST:.2g} lose digits "
                "in float32, in which models compute; use a larger unit or a logarithm if that matters"
            )
