"""The columns of a table: what they hold is learnt while the rows go by, then their values are encoded.

A column whose values are all numbers is numeric, one that has none is categorical; one with both is refused, so that a
slip of the pen does not make a category of each number. Equal values are equal however they are written, in CSV as in
Parquet; values that cannot be kept apart as numbers are refused.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from workflow_lib.data import Feature, merged_in_float32
from workflow_lib.datasets._notation import (
    CODE,
    NEARLY_ALL,
    Notation,
    common_unit,
    folded,
    other_notation,
)
from workflow_lib.datasets._tables import Piece
from workflow_lib.datasets._values import FEW_ROWS, SHOWN, ColumnReader, in_order, parsed, texts
from workflow_lib.errors import DataError

log = logging.getLogger(__name__)

ALWAYS = ("missing", "not in train")  # categories of every categorical column
MOST_CATEGORIES = 10_000  # of a column; where there are more, they are texts, or name one row each
UNITS = 20  # numbers with a unit: so many different ones are no categories
SAMPLED = 4096  # different numbers of a column that are compared as float32
SPLIT_WORDS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testing", "holdout"))


@dataclass
class Column(ColumnReader):
    """A column to predict from."""

    number: str = ""  # where the first one stands, and what it is
    text: str = ""
    kinds: dict[str, str] = field(default_factory=dict)  # the first number and the first text
    code: str = ""  # where the first number with a leading zero stands
    has_missing: bool = False
    is_in_train: bool = False
    categories: Counter[str] = field(default_factory=Counter)
    low: float = math.inf
    high: float = -math.inf
    sample: np.ndarray = field(default_factory=lambda: np.empty(0))
    is_rounded: bool = False  # by float32
    next_row: float | None = None  # the number that the next row has, if the column counts the rows
    counts_rows: bool = True

    def add(self, piece: Piece, in_train: np.ndarray) -> None:
        """The next rows are seen."""
        if self.is_listed:
            self._add_names(texts(piece.values[self.name], self.notation), in_train)
            return
        numbers, is_text = self.numbers(piece)
        is_value = ~np.isnan(numbers)
        self._refuse_both(piece, is_value, is_text)
        if self.text:
            self._add_names(texts(piece.values[self.name], self.notation), in_train)
        else:
            self.has_missing |= not is_value.all()
            self.is_in_train |= bool((is_value & in_train).any())
            self._add_numbers(piece, numbers, is_value)

    def _refuse_both(self, piece: Piece, is_number: np.ndarray, is_text: np.ndarray) -> None:
        for row in sorted(int(where.argmax()) for where in (is_number, is_text) if where.any()):
            value = str(piece.values[self.name][row])
            shown = f"`{value}`"
            if is_text[row]:
                self.text = self.text or f"{shown} in {piece.places[row]}"
                self.kinds.setdefault("text", value)
            else:
                self.number = self.number or f"{shown} in {piece.places[row]}"
                self.kinds.setdefault("number", value)
            if self.text and self.number:
                other = f"no number, but {self.number} is" if is_text[row] else f"a number, but {self.text} is not"
                if other_notation(self.kinds["text"], self.notation):
                    advised = self._advice([self.kinds["text"], self.kinds["number"]])
                    other += f" (numbers are written like {self.notation.example()}{advised})"
                self.refuse(
                    piece,
                    row,
                    f"{shown} is {other}; list the column in data.params.categorical if its values are names, or the "
                    "text in data.params.missing if it means that a value is missing",
                )

    def _add_names(self, names: Sequence[str | None], in_train: np.ndarray) -> None:
        self.has_missing |= None in names
        self.categories.update(name for name, here in zip(names, in_train, strict=True) if here and name is not None)
        self.is_in_train |= bool(self.categories)
        if len(self.categories) > MOST_CATEGORIES:
            raise DataError(
                f"{self.path}, column `{self.name}`: more than {MOST_CATEGORIES:,} categories; leave it out of "
                "data.params.features"
            )

    def _add_numbers(self, piece: Piece, numbers: np.ndarray, is_value: np.ndarray) -> None:
        """Range, and some of the different numbers: those of every row count, so that no draw of train matters."""
        values, written = numbers[is_value], piece.values[self.name]
        if not len(values):
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.is_rounded |= bool((values != values.astype(np.float32)).any())
        if len(self.sample) < SAMPLED:
            self.sample = np.unique(np.concatenate([self.sample, values]))
        if self.next_row is not None:
            values = np.concatenate([[self.next_row - 1], values])
        self.counts_rows &= bool(is_value.all()) and bool((np.diff(values) == 1).all())
        self.next_row = float(values[-1]) + 1
        if not self.code and not isinstance(written, np.ndarray):
            at = next((row for row, text in enumerate(written) if text and CODE.fullmatch(text)), None)
            self.code = "" if at is None else f"`{written[at]}` in {piece.places[at]}"

    def encoded(self) -> Encoded:
        """How its values become inputs."""
        where = f"{self.path}, column `{self.name}`"
        if not self.is_in_train:
            raise DataError(f"{where}: no row of train has a value; leave it out of data.params.features")
        if self.is_first and self.text and not self.is_listed:
            self._refuse_no_categories(where)
        categories = (*ALWAYS, *in_order(self.categories, self.notation)) if self.categories else ()
        centre = 0.0 if categories else self._centre()
        if self.is_first and self.is_rounded and not categories:
            merged = merged_in_float32(self.sample - centre, tolerance=0.05)
            if merged is not None:
                one, two = (number + centre for number in merged)
                raise DataError(
                    f"{where}: float32, in which models compute, does not tell {one!r} from {two!r}, nor many others "
                    "of the column; give it in a larger unit or less a start, list it in data.params.categorical "
                    "if its values are names, or leave it out"
                )
        return Encoded(self.name, self.notation, categories, self.has_missing, centre)

    def _centre(self) -> float:
        """A number to subtract before float32 rounds: 0, unless all lie together and far from 0, as time stamps do."""
        spread = self.high - self.low
        if not self.is_rounded or max(abs(self.low), abs(self.high)) <= 4 * spread:
            return 0.0
        middle = self.low + spread / 2
        return float(round(middle)) if spread >= 1 else middle

    def _refuse_no_categories(self, where: str) -> None:
        """Texts that are numbers in another notation, names of single rows, or names of splits, are refused."""
        listed = "list it in data.params.categorical if its values are names, or leave it out of data.params.features"
        total, rows = len(self.categories), self.categories.total()
        kinds = [(what, name) for name in self.categories if (what := other_notation(name, self.notation))]
        if kinds and len(kinds) >= NEARLY_ALL * total:
            raise DataError(
                f"{where}: {self.text} is no number here, but `{kinds[0][1]}` is {kinds[0][0]} to a person, and so "
                f"are {len(kinds)} of its {total} texts; write numbers like {self.notation.example()}, dates as numbers"
                f"{self._advice([name for _, name in kinds])}; or {listed}"
            )
        if total > UNITS and (unit := common_unit(self.categories)) is not None:
            raise DataError(
                f"{where}: {self.text} is a number with the unit `{unit}`; leave the unit out of the file, or {listed}"
            )
        once = sum(count == 1 for count in self.categories.values())
        if rows >= FEW_ROWS and once > rows / 2:
            raise DataError(
                f"{where}: {once} of {rows} rows have a text that no other row has (such as {self.text}), of which "
                f"nothing can be learnt; {listed}"
            )
        if len(words := {name.casefold() for name in self.categories}) > 1 and words <= SPLIT_WORDS:
            raise DataError(
                f"{where}: its values are names of splits; set data.params.split: {self.name} if it says where a row "
                f"belongs (train, val, test), or {listed}"
            )

    def _is_dwarfed(self) -> bool:
        """True when normalisation leaves no difference between most of the numbers, since others are so far away."""
        values = np.unique(np.append(self.sample, [self.low, self.high]))
        normal = (values - values.mean()) / (values.std() or 1.0)
        return len(np.unique(normal.astype(np.float32))) < len(values) / 2

    @property
    def is_constant(self) -> bool:
        """True when every row has the same value."""
        return not self.has_missing and (len(self.categories) == 1 if self.categories else self.low == self.high)

    def told(self) -> str:
        """The column in a line: its kind, and what it holds."""
        gaps = ", some missing" if self.has_missing else ""
        if not self.categories:
            return f"`{self.name}`: number, {self.low:.10g} to {self.high:.10g}{gaps}"
        names = in_order(self.categories, self.notation)
        some = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        return f"`{self.name}`: category, {len(names)} different ({some}){gaps}"

    def warn(self) -> None:
        """Tell what is likely to be a mistake of the file, though it can be used."""
        where = f"{self.path}, column `{self.name}`"
        if not self.categories:
            self.warn_small()
        if self.code:
            log.warning(
                "%s: %s is read as a number; list it in data.params.categorical if it is a code", where, self.code
            )
        if self.is_constant:
            log.warning("%s: every row has the same value; it tells a model nothing", where)
        elif not self.categories and self._is_dwarfed():
            largest = max(self.low, self.high, key=abs)
            log.warning("%s: beside %.10g nearly all other numbers are one; is it a mistake?", where, largest)
        elif not self.categories and self.counts_rows and self.high - self.low >= FEW_ROWS:
            log.warning("%s: counts the rows; leave it out of data.params.features if it is no measurement", where)
        by_fold: dict[str, str] = {}
        for name in self.categories:
            if (other := by_fold.setdefault(folded(name), name)) != name:
                log.warning(
                    "%s: `%s` and `%s` are two categories; write them alike if they are one", where, other, name
                )
                break


@dataclass(frozen=True)
class Encoded:
    """A column as inputs of a model."""

    name: str
    notation: Notation
    categories: tuple[str, ...]
    has_missing: bool
    centre: float = 0.0  # subtracted from the numbers in float64

    @property
    def depends_on_rows(self) -> bool:
        """Whether other rows of train may have other categories, or no value at all."""
        return bool(self.categories) or self.has_missing

    @property
    def features(self) -> list[Feature]:
        """The column, and that it is missing."""
        marks = [Feature(f"{self.name} is missing")] if self.has_missing and not self.categories else []
        return [Feature(self.name, self.categories, self.centre), *marks]

    @cached_property
    def codes(self) -> dict[str | None, int]:
        """The number of each category; those of train come after the two that all columns have."""
        return {None: 0} | {name: number for number, name in enumerate(self.categories[len(ALWAYS) :], len(ALWAYS))}

    def columns(self, piece: Piece) -> list[np.ndarray]:
        """The features of these rows, float32 each."""
        values = piece.values[self.name]
        if self.categories:
            return [np.array([self.codes.get(text, 1) for text in texts(values, self.notation)], np.float32)]
        numbers = (parsed(values, self.notation)[0] - self.centre).astype(np.float32)
        return [numbers, np.isnan(numbers).astype(np.float32)] if self.has_missing else [numbers]
