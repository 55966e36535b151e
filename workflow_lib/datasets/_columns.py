"""The feature columns of a table: a scan of the rows finds the kind of each column, then its values are encoded.

A column of numbers is numeric, a column without numbers is categorical. A column with both is rejected: otherwise a
typing error would turn each number into a category. Equal values are equal in any notation, in CSV and in Parquet.
Columns of different numbers that float32 would merge are rejected.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from workflow_lib.data import Feature, merged_in_float32
from workflow_lib.datasets._notation import CODE, NEARLY_ALL, Notation, common_unit, folded, other_notation
from workflow_lib.datasets._tables import Piece
from workflow_lib.datasets._values import FEW_ROWS, SHOWN, ColumnReader, names_of, parse_numbers, sort_names
from workflow_lib.errors import DataError

ALWAYS = ("missing", "not in train")  # categories of every categorical column
MOST_CATEGORIES = 10_000  # in a column; with more, the values are free text or identify rows
UNITS = 20  # more different texts than this with the same unit are taken for numbers, not for categories
SAMPLED = 4096  # different numbers of a column that are compared as float32
SPLIT_WORDS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testing", "holdout"))


@dataclass
class Column(ColumnReader):
    """A feature column: totals of a scan, from which the kind and the encoding follow."""

    number: str = ""  # the first number, with its place
    text: str = ""  # the first text, with its place
    kinds: dict[str, str] = field(default_factory=dict)  # the first number and the first text
    code: str = ""  # the first number with a leading zero, with its place
    has_missing: bool = False
    is_in_train: bool = False
    categories: Counter[str] = field(default_factory=Counter)
    low: float = math.inf
    high: float = -math.inf
    sample: np.ndarray = field(default_factory=lambda: np.empty(0))
    is_rounded: bool = False  # float32 rounds some of the numbers
    next_row: float | None = None  # expected in the next row if the column counts the rows
    counts_rows: bool = True

    def add(self, piece: Piece, in_train: np.ndarray) -> None:
        """Add the next rows; `in_train` marks those from which categories are learned."""
        if self.is_listed:
            self._add_names(names_of(piece.values[self.name], self.notation), in_train)
            return
        numbers, is_text = self.numbers(piece)
        is_value = ~np.isnan(numbers)
        self._check_kinds(piece, is_value, is_text)
        if self.text:
            self._add_names(names_of(piece.values[self.name], self.notation), in_train)
        else:
            self.has_missing |= not is_value.all()
            self.is_in_train |= bool((is_value & in_train).any())
            self._add_numbers(piece, numbers, is_value)

    def _check_kinds(self, piece: Piece, is_number: np.ndarray, is_text: np.ndarray) -> None:
        """Remember the first number and the first text; reject a column that has both."""
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
                other = f"not a number, but {self.number} is" if is_text[row] else f"a number, but {self.text} is not"
                if other_notation(self.kinds["text"], self.notation):
                    advised = self._advice([self.kinds["text"], self.kinds["number"]])
                    other += f" (numbers are written like {self.notation.example()}{advised})"
                self.reject(
                    piece,
                    row,
                    f"{shown} is {other}; list the column in data.params.categorical if its values are names, or the "
                    "text in data.params.missing if it means a missing value",
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
        """Add to the range and the sample of numbers; rows of all splits count, so checks do not depend on the draw."""
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

    def encoding(self) -> ColumnEncoding:
        """Return the encoding of the values as inputs. Raises DataError for a column that cannot be used."""
        where = f"{self.path}, column `{self.name}`"
        if not self.is_in_train:
            raise DataError(f"{where}: no row of train has a value; leave it out of data.params.features")
        if self.is_first and self.text and not self.is_listed:
            self._check_categories(where)
        categories = (*ALWAYS, *sort_names(self.categories, self.notation)) if self.categories else ()
        centre = 0.0 if categories else self._centre()
        if self.is_first and self.is_rounded and not categories:
            merged = merged_in_float32(self.sample - centre, tolerance=0.05)
            if merged is not None:
                low, high = (number + centre for number in merged)
                raise DataError(
                    f"{where}: {low!r} and {high!r} are equal in float32, in which models compute, and so are other "
                    "numbers of the column; use a larger unit or subtract a constant, list it in "
                    "data.params.categorical if its values are names, or leave it out"
                )
        return ColumnEncoding(self.name, self.notation, categories, self.has_missing, centre)

    def _centre(self) -> float:
        """Return a number to subtract before rounding to float32: not 0 only if numbers are close and far from 0."""
        spread = self.high - self.low
        if not self.is_rounded or max(abs(self.low), abs(self.high)) <= 4 * spread:
            return 0.0
        middle = self.low + spread / 2
        # Rounded, so that whole numbers stay whole.
        return float(round(middle)) if spread >= 1 else middle

    def _check_categories(self, where: str) -> None:
        """Reject texts that are numbers in another notation, names of single rows, or names of splits."""
        listed = "list it in data.params.categorical if its values are names, or leave it out of data.params.features"
        total, rows = len(self.categories), self.categories.total()
        kinds = [(what, name) for name in self.categories if (what := other_notation(name, self.notation))]
        if kinds and len(kinds) >= NEARLY_ALL * total:
            raise DataError(
                f"{where}: {self.text} is not a number here, but `{kinds[0][1]}` looks like {kinds[0][0]}, as do "
                f"{len(kinds)} of its {total} texts; write numbers like {self.notation.example()}, dates as numbers"
                f"{self._advice([name for _, name in kinds])}; or {listed}"
            )
        if total > UNITS and (unit := common_unit(self.categories)) is not None:
            raise DataError(
                f"{where}: {self.text} is a number with the unit `{unit}`; remove the unit from the file, or {listed}"
            )
        once = sum(count == 1 for count in self.categories.values())
        if rows >= FEW_ROWS and once > rows / 2:
            raise DataError(
                f"{where}: {once} of {rows} rows have a text that no other row has (such as {self.text}): nothing can "
                f"be learned from it; {listed}"
            )
        if len(words := {name.casefold() for name in self.categories}) > 1 and words <= SPLIT_WORDS:
            raise DataError(
                f"{where}: its values are names of splits; set data.params.split: {self.name} if it gives the split of "
                f"a row (train, val, test), or {listed}"
            )

    def _is_dwarfed(self) -> bool:
        """Return True if normalisation merges most of the numbers in float32, because a few are far away."""
        values = np.unique(np.append(self.sample, [self.low, self.high]))
        normal = (values - values.mean()) / (values.std() or 1.0)
        return len(np.unique(normal.astype(np.float32))) < len(values) / 2

    @property
    def is_constant(self) -> bool:
        """True if every row has the same value."""
        return not self.has_missing and (len(self.categories) == 1 if self.categories else self.low == self.high)

    def summary(self) -> str:
        """Return a line with the kind of the column and its range or categories."""
        gaps = ", some missing" if self.has_missing else ""
        if not self.categories:
            return f"`{self.name}`: number, {self.low:.10g} to {self.high:.10g}{gaps}"
        names = sort_names(self.categories, self.notation)
        some = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        return f"`{self.name}`: category, {len(names)} different ({some}){gaps}"

    def warnings(self) -> Iterator[str]:
        """Yield a warning for values that can be used, but are probably a mistake."""
        where = f"{self.path}, column `{self.name}`"
        if not self.categories:
            yield from super().warnings()
        if self.code:
            yield f"{where}: {self.code} is read as a number; list it in data.params.categorical if it is a code"
        if self.is_constant:
            yield f"{where}: every row has the same value; a model cannot learn from it"
        elif not self.categories and self._is_dwarfed():
            largest = max(self.low, self.high, key=abs)
            yield f"{where}: {largest:.10g} is so far away that most other numbers become equal: a mistake?"
        elif not self.categories and self.counts_rows and self.high - self.low >= FEW_ROWS:
            yield f"{where}: counts the rows; leave it out of data.params.features unless it is a measurement"
        by_fold: dict[str, str] = {}
        for name in self.categories:
            if (other := by_fold.setdefault(folded(name), name)) != name:
                yield f"{where}: `{other}` and `{name}` are two categories; use one spelling if they are the same"
                break


def mark_of(name: str) -> str:
    """Return the name of the feature that marks the missing numbers of a column."""
    return f"{name} is missing"


@dataclass(frozen=True)
class ColumnEncoding:
    """The encoding of a column as inputs of a model."""

    name: str
    notation: Notation
    categories: tuple[str, ...]
    has_missing: bool
    centre: float = 0.0  # subtracted from the numbers in float64

    @property
    def depends_on_rows(self) -> bool:
        """True if other rows of train could give other categories, or no value at all."""
        return bool(self.categories) or self.has_missing

    @property
    def features(self) -> list[Feature]:
        """The feature, and for a numeric column with missing values a second one that marks them."""
        marks = [Feature(mark_of(self.name))] if self.has_missing and not self.categories else []
        return [Feature(self.name, self.categories, self.centre), *marks]

    @cached_property
    def codes(self) -> dict[str | None, int]:
        """The number of each category; those of train follow the two in ALWAYS."""
        return {None: 0} | {name: number for number, name in enumerate(self.categories[len(ALWAYS) :], len(ALWAYS))}

    def columns(self, piece: Piece) -> list[np.ndarray]:
        """Return the features of these rows, float32 [rows] each."""
        values = piece.values[self.name]
        if self.categories:
            return [np.array([self.codes.get(name, 1) for name in names_of(values, self.notation)], np.float32)]
        numbers = (parse_numbers(values, self.notation)[0] - self.centre).astype(np.float32)
        return [numbers, np.isnan(numbers).astype(np.float32)] if self.has_missing else [numbers]
