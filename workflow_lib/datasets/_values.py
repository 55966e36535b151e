"""The values of a table's columns as numbers and as names, with errors that name the place."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import NoReturn

import numpy as np

from workflow_lib.datasets._notation import (
    Notation,
    advice,
    is_number,
    name_of,
)
from workflow_lib.datasets._tables import Piece, Values
from workflow_lib.errors import DataError

log = logging.getLogger(__name__)


LARGEST = float(np.finfo(np.float32).max)


SMALLEST = float(np.finfo(np.float32).tiny)  # below, float32 has fewer digits, and 0 in the end


FEW_ROWS = 10  # in fewer, texts that occur once say nothing about a column


SHOWN = 5  # categories of a column that the log lists


def parsed(values: Values, notation: Notation) -> tuple[np.ndarray, np.ndarray]:
    """The numbers, float64 with NaN for all else, and where that is neither a number nor missing."""
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


def texts(values: Values, notation: Notation) -> list[str | None]:
    """The values as names, None where they are missing; equal numbers have one name, however they are written."""
    if isinstance(values, np.ndarray):
        return [
            None
            if math.isnan(v)
            else str(int(v))
            if v.is_integer()
            else format(Decimal(repr(v)), "f").replace(".", notation.decimal)
            for v in values.tolist()
        ]
    return [None if value is None or value in notation.missing else notation.name(value) for value in values]


def in_order(names: Iterable[str], notation: Notation) -> tuple[str, ...]:
    """The names sorted, as numbers if they all are."""
    listed = sorted(names)
    numbers = {name: float(plain) for name in listed if (plain := notation.plain(name)) is not None}
    return tuple(sorted(listed, key=numbers.__getitem__)) if len(numbers) == len(listed) else tuple(listed)


def is_inexact(text: str | None) -> bool:
    """Return True for a whole number, written digit by digit, that float64 does not hold.

    With an exponent it is a float already: programs write as many digits as tell it from other ones.
    """
    if text is None or len(text) < 16 or "e" in text.lower() or not is_number(text):
        return False
    whole = name_of(text).lstrip("-")
    return whole.isdigit() and int(float(whole)) != int(whole)


@dataclass
class ColumnReader:
    """A column while the rows of the file go by; what cannot be used is refused with its place."""

    path: Path
    name: str
    notation: Notation
    is_listed: bool = False  # as categorical: its values are names, whatever they look like
    is_first: bool = True  # all of the file is seen for the first time: what is found is judged and told
    small: str = field(default="", kw_only=True)  # where the first number is that float32 holds badly, and what it is

    def refuse(self, piece: Piece, row: int, what: str) -> NoReturn:
        """The error of a row of the piece."""
        raise DataError(f"{self.path}, {piece.places[row]}, column `{self.name}`: {what}")

    def _refuse_missing(self, piece: Piece, row: int) -> NoReturn:
        """The error of a row without a target."""
        values = piece.values[self.name]
        text = None if isinstance(values, np.ndarray) else values[row]
        listed = f"; if `{text}` is a class, leave it out of data.params.missing" if text else ""
        self.refuse(piece, row, f"the target is missing; leave the row out, or fill it{listed}")

    def _advice(self, numbers: Sequence[str]) -> str:
        """The settings that read these texts as numbers, to follow in a message; empty if there are none."""
        return f"; {found}" if (found := advice(numbers)) else ""

    def numbers(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """As `parsed`; a number that float32 or, being whole, float64 does not hold is refused."""
        values = piece.values[self.name]
        numbers, is_text = parsed(values, self.notation)
        if (large := np.abs(numbers) > LARGEST).any():
            row = int(large.argmax())
            self.refuse(piece, row, f"{numbers[row]:g} is too large a number; up to {LARGEST:g} is allowed")
        if not isinstance(values, np.ndarray):
            self._refuse_underflow(piece, values, numbers)
        if not self.small and (is_small := (numbers != 0) & (np.abs(numbers) < SMALLEST)).any():
            self.small = f"{numbers[row := int(is_small.argmax())]:g} in {piece.places[row]}"
        if not isinstance(values, np.ndarray) and (np.abs(numbers) >= 2**53).any():
            for row in np.flatnonzero(np.abs(numbers) >= 2**53).tolist():
                if is_inexact(self.notation.plain(values[row] or "")):
                    self.refuse(
                        piece,
                        row,
                        f"{values[row]} is a whole number that no float64 holds ({int(numbers[row])} is the nearest); "
                        "list the column in data.params.categorical if its values are names, or leave it out",
                    )
        return numbers, is_text

    def _refuse_underflow(self, piece: Piece, values: Sequence[str | None], numbers: np.ndarray) -> None:
        for row in np.flatnonzero(numbers == 0).tolist():
            text = values[row] or ""
            if re.search("[1-9]", re.split("[eE]", text)[0]):
                self.refuse(piece, row, f"{text} is too near to 0: float64 does not tell it from 0; take a logarithm")

    def warn_small(self) -> None:
        """Tell that float32 does not keep the digits of some numbers."""
        if self.small:
            log.warning(
                "%s, column `%s`: %s, and what else is nearer to 0 than %.2g, has few digits or none in float32, in "
                "which models compute; take a larger unit or a logarithm if that matters",
                self.path, self.name, self.small, SMALLEST,
            )  # fmt: skip
