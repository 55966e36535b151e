"""The columns of a table: what they hold is learnt while the rows go by, then their values are encoded.

A column whose values are all numbers is numeric, one that has none is categorical; one with both is refused, so that a
slip of the pen does not make a category of each number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np

from workflow_lib.data._tables import Piece, Values
from workflow_lib.errors import DataError
from workflow_lib.shards import Feature

ALWAYS = ("missing", "not in train")  # categories of every categorical column
MOST_CATEGORIES = 10_000  # of a column; where there are more, they are texts, or name one row each
MOST_CLASSES = 1_000
LARGEST = float(np.finfo(np.float32).max)


def parsed(values: Values, missing: frozenset[str]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers, float64 with NaN for all else, and where that is neither a number nor missing."""
    if isinstance(values, np.ndarray):
        return values, np.zeros(len(values), bool)
    numbers, is_text = np.full(len(values), np.nan), np.zeros(len(values), bool)
    for place, value in enumerate(values):
        if value is not None and value not in missing:
            try:
                numbers[place] = float(value)
            except ValueError:
                is_text[place] = True
    return numbers, is_text


def texts(values: Values, missing: frozenset[str]) -> list[str | None]:
    """The values as names, None where they are missing."""
    if isinstance(values, np.ndarray):
        return [None if math.isnan(v) else str(int(v)) if v.is_integer() else repr(v) for v in values.tolist()]
    return [None if value in missing else value for value in values]


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The names sorted, as numbers if they all are."""
    listed = sorted(names)
    try:
        return tuple(sorted(listed, key=float))
    except ValueError:
        return tuple(listed)


@dataclass
class _Read:
    """A column while the rows of the file go by; what cannot be used is refused with its place."""

    path: Path
    name: str
    missing: frozenset[str]

    def refuse(self, piece: Piece, row: int, what: str) -> NoReturn:
        """The error of a row of the piece."""
        raise DataError(f"{self.path}, {piece.places[row]}, column `{self.name}`: {what}")

    def numbers(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """As `parsed`; a number that float32 does not hold is refused."""
        numbers, is_text = parsed(piece.values[self.name], self.missing)
        if (large := np.abs(numbers) > LARGEST).any():
            row = int(large.argmax())
            self.refuse(piece, row, f"{numbers[row]:g} is too large a number; up to {LARGEST:g} is allowed")
        return numbers, is_text


@dataclass
class Column(_Read):
    """A column to predict from."""

    is_listed: bool  # as categorical
    number: str = ""  # where the first one stands, and what it is
    text: str = ""
    has_missing: bool = False
    is_in_train: bool = False
    categories: set[str] = field(default_factory=set)

    def add(self, piece: Piece, in_train: np.ndarray) -> None:
        """The next rows are seen."""
        if self.is_listed:
            self._add_names(texts(piece.values[self.name], self.missing), in_train)
            return
        numbers, is_text = self.numbers(piece)
        is_number = ~np.isnan(numbers)
        self._refuse_both(piece, is_number, is_text)
        if self.text:
            self._add_names(texts(piece.values[self.name], self.missing), in_train)
        else:
            self.has_missing |= not is_number.all()
            self.is_in_train |= bool((is_number & in_train).any())

    def _refuse_both(self, piece: Piece, is_number: np.ndarray, is_text: np.ndarray) -> None:
        for row in sorted(int(where.argmax()) for where in (is_number, is_text) if where.any()):
            shown = f"`{piece.values[self.name][row]}`"
            if is_text[row]:
                self.text = self.text or f"{shown} in {piece.places[row]}"
            else:
                self.number = self.number or f"{shown} in {piece.places[row]}"
            if self.text and self.number:
                other = f"no number, but {self.number} is" if is_text[row] else f"a number, but {self.text} is not"
                self.refuse(
                    piece,
                    row,
                    f"{shown} is {other}; list the column in data.params.categorical if its values are names, or the "
                    "text in data.params.missing if it means that a value is missing",
                )

    def _add_names(self, names: Sequence[str | None], in_train: np.ndarray) -> None:
        self.categories.update(name for name, here in zip(names, in_train, strict=True) if here and name is not None)
        self.is_in_train |= bool(self.categories)
        if len(self.categories) > MOST_CATEGORIES:
            raise DataError(
                f"{self.path}, column `{self.name}`: more than {MOST_CATEGORIES:,} categories; leave it out of "
                "data.params.features"
            )

    def encoded(self) -> Encoded:
        """How its values become inputs."""
        if not self.is_in_train:
            raise DataError(
                f"{self.path}, column `{self.name}`: no row of train has a value; leave it out of data.params.features"
            )
        categories = (*ALWAYS, *in_order(self.categories)) if self.categories else ()
        return Encoded(self.name, self.missing, categories, self.has_missing)


@dataclass(frozen=True)
class Encoded:
    """A column as inputs of a model."""

    name: str
    missing: frozenset[str]
    categories: tuple[str, ...]
    has_missing: bool

    @property
    def depends_on_rows(self) -> bool:
        """Whether other rows of train may have other categories, or no value at all."""
        return bool(self.categories) or self.has_missing

    @property
    def features(self) -> list[Feature]:
        """The column, and that it is missing."""
        marks = [Feature(f"{self.name} is missing")] if self.has_missing and not self.categories else []
        return [Feature(self.name, self.categories), *marks]

    @cached_property
    def codes(self) -> dict[str | None, int]:
        """The number of each category; those of train come after the two that all columns have."""
        return {None: 0} | {name: number for number, name in enumerate(self.categories[len(ALWAYS) :], len(ALWAYS))}

    def columns(self, piece: Piece) -> list[np.ndarray]:
        """The features of these rows, float32 each."""
        values = piece.values[self.name]
        if self.categories:
            return [np.array([self.codes.get(text, 1) for text in texts(values, self.missing)], np.float32)]
        numbers = parsed(values, self.missing)[0].astype(np.float32)
        return [numbers, np.isnan(numbers).astype(np.float32)] if self.has_missing else [numbers]


@dataclass
class Classes(_Read):
    """The target of a classification."""

    codes: dict[str, int] = field(default_factory=dict)  # in the order in which they come
    seen: list[np.ndarray] = field(default_factory=list)
    only_held_out: dict[str, str] = field(default_factory=dict)  # classes not in train yet, and where they stand

    def add(self, piece: Piece, in_train: np.ndarray) -> None:
        """The next rows are seen."""
        names = texts(piece.values[self.name], self.missing)
        for row, (name, here) in enumerate(zip(names, in_train, strict=True)):
            if name is None:
                self.refuse(piece, row, "the target is missing; leave the row out, or fill it")
            if name not in self.codes:
                self._refuse_fraction(piece, row, name)
                self.codes[name] = len(self.codes)
                self.only_held_out[name] = piece.places[row]
            if here:
                self.only_held_out.pop(name, None)
        self.seen.append(np.array([self.codes[str(name)] for name in names], np.int64))

    def _refuse_fraction(self, piece: Piece, row: int, name: str) -> None:
        numbers, _ = parsed([name], self.missing)
        hint = "set data.params.task: regression to predict a number"
        if numbers[0] % 1 > 0:
            self.refuse(piece, row, f"the target {name} is not a whole number, and no name of a class; {hint}")
        if len(self.codes) == MOST_CLASSES:
            self.refuse(piece, row, f"more than {MOST_CLASSES:,} different targets, which are classes; {hint}")

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, sorted."""
        return in_order(self.codes)

    def encoded(self) -> np.ndarray:
        """Class numbers of all rows."""
        for name, place in self.only_held_out.items():
            raise DataError(f"{self.path}, {place}, column `{self.name}`: no row of train has the class `{name}`")
        if len(self.codes) == 1:
            raise DataError(f"{self.path}, column `{self.name}`: every target is `{self.classes[0]}`: nothing to learn")
        order = {name: number for number, name in enumerate(self.classes)}
        return np.array([order[name] for name in self.codes], np.int64)[np.concatenate(self.seen)]


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
            hint = "for names set data.params.task: classification"
            self.refuse(piece, row, f"the target `{text}` is not a number; {hint}")
        if (bad := np.isnan(numbers)).any():
            self.refuse(piece, int(bad.argmax()), "the target is missing; leave the row out, or fill it")
        self.seen.append(numbers.astype(np.float32))

    def encoded(self) -> np.ndarray:
        """The targets of all rows."""
        targets = np.concatenate(self.seen)
        if (targets == targets[0]).all():
            raise DataError(f"{self.path}, column `{self.name}`: every target is {targets[0]:g}: nothing to learn")
        return targets
