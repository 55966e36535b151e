"""The columns of a table: what they hold is learnt while the rows go by, then their values are encoded.

A column whose values are all numbers is numeric, one that has none is categorical; one with both is refused, so that a
slip of the pen does not make a category of each number. Equal values are equal however they are written, in CSV as in
Parquet; values that cannot be kept apart as numbers are refused.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np

from workflow_lib.data import Feature, merged_in_float32
from workflow_lib.datasets._notation import (
    CODE,
    LIKE_MISSING,
    NEARLY_ALL,
    Notation,
    advice,
    common_unit,
    folded,
    is_number,
    name_of,
    other_notation,
)
from workflow_lib.datasets._tables import Piece, Values
from workflow_lib.errors import DataError

log = logging.getLogger(__name__)

ALWAYS = ("missing", "not in train")  # categories of every categorical column
MOST_CATEGORIES = 10_000  # of a column; where there are more, they are texts, or name one row each
MOST_CLASSES = 1_000
LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).tiny)  # below, float32 has fewer digits, and 0 in the end
FEW_ROWS = 10  # in fewer, texts that occur once say nothing about a column
UNITS = 20  # numbers with a unit: so many different ones are no categories
SAMPLED = 4096  # different numbers of a column that are compared as float32
SHOWN = 5  # categories of a column that the log lists
SPLIT_WORDS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testing", "holdout"))


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
class _Read:
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


@dataclass
class Column(_Read):
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


@dataclass
class Classes(_Read):
    """The target of a classification."""

    codes: dict[str, int] = field(default_factory=dict)  # in the order in which they come
    spelt: dict[str, tuple[str, str]] = field(default_factory=dict)  # folded: the name and where it stands
    seen: list[np.ndarray] = field(default_factory=list)
    only_held_out: dict[str, str] = field(default_factory=dict)  # classes not in train yet, and where they stand

    def add(self, piece: Piece, in_train: np.ndarray) -> None:
        """The next rows are seen."""
        names = texts(piece.values[self.name], self.notation)
        for row, (name, here) in enumerate(zip(names, in_train, strict=True)):
            if name is None:
                self._refuse_missing(piece, row)
            if name not in self.codes:
                self._refuse_fraction(piece, row, name)
                if not self.is_listed:
                    self._refuse_doubtful(piece, row, name)
                self.codes[name] = len(self.codes)
                self.only_held_out[name] = piece.places[row]
            if here:
                self.only_held_out.pop(name, None)
        self.seen.append(np.array([self.codes[str(name)] for name in names], np.int64))

    def _refuse_fraction(self, piece: Piece, row: int, name: str) -> None:
        hint = "set data.params.task: regression to predict a number"
        if (plain := self.notation.plain(name)) is not None and float(plain) % 1 > 0:
            self.refuse(piece, row, f"the target {name} is not a whole number, and no name of a class; {hint}")
        if len(self.codes) == MOST_CLASSES:
            self.refuse(piece, row, f"more than {MOST_CLASSES:,} different targets, which are classes; {hint}")

    def _refuse_doubtful(self, piece: Piece, row: int, name: str) -> None:
        """A class that is likely to be another one, or none, in another spelling."""
        as_is = f"if it is a class, list `{self.name}` in data.params.categorical, and names count as they are written"
        if name.casefold() in LIKE_MISSING:
            self.refuse(piece, row, f"the target `{name}` looks as if it were missing: leave the row out; {as_is}")
        other, place = self.spelt.setdefault(folded(name), (name, piece.places[row]))
        if other != name:
            self.refuse(piece, row, f"the target `{name}` is `{other}` in {place}: spell a class in one way; {as_is}")

    def _refuse_other_notation(self) -> None:
        kinds = [(what, name) for name in self.codes if (what := other_notation(name, self.notation))]
        if kinds and len(kinds) >= NEARLY_ALL * len(self.codes):
            what, name = kinds[0]
            raise DataError(
                f"{self.path}, {self.spelt[folded(name)][1]}, column `{self.name}`: the target `{name}` is {what}; set "
                f"data.params.task: regression to predict numbers, written like {self.notation.example()}"
                f"{self._advice([name for _, name in kinds])}; if these are classes, list `{self.name}` in "
                "data.params.categorical"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, sorted."""
        return in_order(self.codes, self.notation)

    def encoded(self) -> np.ndarray:
        """Class numbers of all rows."""
        for name, place in self.only_held_out.items() if self.is_first else ():
            raise DataError(f"{self.path}, {place}, column `{self.name}`: no row of train has the class `{name}`")
        if len(self.codes) == 1:
            raise DataError(f"{self.path}, column `{self.name}`: every target is `{self.classes[0]}`: nothing to learn")
        if self.is_first and not self.is_listed:
            self._refuse_other_notation()
        order = {name: number for number, name in enumerate(self.classes)}
        targets = np.array([order[name] for name in self.codes], np.int64)[np.concatenate(self.seen)]
        once = int((np.bincount(targets) == 1).sum())
        if self.is_first and not self.is_listed and len(targets) >= FEW_ROWS and once > len(targets) / 2:
            raise DataError(
                f"{self.path}, column `{self.name}`: {once} of {len(targets)} rows have a target that no other row "
                "has, of which nothing can be learnt; name another column in data.params.target, or set "
                "data.params.task: regression to predict a number"
            )
        return targets

    def told(self) -> str:
        """The column in a line."""
        some = ", ".join(self.classes[:SHOWN]) + (", ..." if len(self.classes) > SHOWN else "")
        return f"`{self.name}`: target, {len(self.classes)} classes ({some})"


@dataclass
class Numbers(_Read):
    """The target of a regression."""

    seen: list[np.ndarray] = field(default_factory=list)
    classes: tuple[str, ...] = ()

    def add(self, piece: Piece, in_train: np.ndarray) -> None:
        """The next rows are seen."""
        numbers, is_text = self.numbers(piece)
        if is_text.any():
            row = int(is_text.argmax())
            text = piece.values[self.name][row]
            hint = f"for names set data.params.task: classification{self._advice([str(text)])}"
            self.refuse(piece, row, f"the target `{text}` is not a number; {hint}")
        if (bad := np.isnan(numbers)).any():
            self._refuse_missing(piece, int(bad.argmax()))
        self.seen.append(numbers)

    def encoded(self) -> np.ndarray:
        """The targets of all rows, float32."""
        targets, where = np.concatenate(self.seen), f"{self.path}, column `{self.name}`"
        if (targets == targets[0]).all():
            raise DataError(f"{where}: every target is {targets[0]:g}: nothing to learn")
        if (merged := merged_in_float32(targets, tolerance=0.05)) is not None:
            raise DataError(
                f"{where}: float32, in which models compute, does not tell the targets {merged[0]!r} and {merged[1]!r} "
                "apart; predict the difference from a start, or a larger unit"
            )
        return targets.astype(np.float32)

    def told(self) -> str:
        """The column in a line."""
        targets = np.concatenate(self.seen)
        return f"`{self.name}`: target, number, {targets.min():.10g} to {targets.max():.10g}"
