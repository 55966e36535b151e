"""The target columns of a table: classes, numbers or labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from workflow_lib.data import merged_in_float32
from workflow_lib.datasets._notation import LIKE_MISSING, NEARLY_ALL, folded, other_notation
from workflow_lib.datasets._tables import Piece
from workflow_lib.datasets._values import FEW_ROWS, SHOWN, ColumnReader, names_of, parse_numbers, sort_names
from workflow_lib.errors import DataError

MOST_CLASSES = 1_000
TRUTH = {"true": 1, "false": 0}


@dataclass
class Classes(ColumnReader):
    """The target of a classification."""

    codes: dict[str, int] = field(default_factory=dict)  # numbers in order of appearance
    spelt: dict[str, tuple[str, str]] = field(default_factory=dict)  # by folded name: the name and its place
    seen: list[np.ndarray] = field(default_factory=list)
    only_held_out: dict[str, str] = field(default_factory=dict)  # classes not found in train so far, and their place

    def add(self, piece: Piece, in_train: np.ndarray) -> None:
        """Add the next rows."""
        names = names_of(piece.values[self.name], self.notation)
        for row, (name, here) in enumerate(zip(names, in_train, strict=True)):
            if name is None:
                self._reject_missing(piece, row)
            if name not in self.codes:
                self._check_name(piece, row, name)
                if not self.is_listed:
                    self._check_spelling(piece, row, name)
                self.codes[name] = len(self.codes)
                self.only_held_out[name] = piece.places[row]
            if here:
                self.only_held_out.pop(name, None)
        self.seen.append(np.array([self.codes[str(name)] for name in names], np.int64))

    def _check_name(self, piece: Piece, row: int, name: str) -> None:
        """Reject a fraction, and more than MOST_CLASSES classes: the target is probably a number to predict."""
        hint = "set data.params.task: regression to predict a number"
        if (plain := self.notation.plain(name)) is not None and float(plain) % 1 > 0:
            self.reject(piece, row, f"the target {name} is a fraction, which is not allowed for a class; {hint}")
        if len(self.codes) == MOST_CLASSES:
            self.reject(piece, row, f"more than {MOST_CLASSES:,} different targets, each of them a class; {hint}")

    def _check_spelling(self, piece: Piece, row: int, name: str) -> None:
        """Reject a class that looks like a missing value, or like another class in a different spelling."""
        as_is = f"if it is a class, list `{self.name}` in data.params.categorical: then every spelling is a class"
        if name.casefold() in LIKE_MISSING:
            self.reject(piece, row, f"the target `{name}` looks like a missing value: remove the row; {as_is}")
        other, place = self.spelt.setdefault(folded(name), (name, piece.places[row]))
        if other != name:
            self.reject(piece, row, f"the target `{name}` is `{other}` in {place}: use one spelling; {as_is}")

    def _check_notation(self) -> None:
        """Reject classes that are nearly all numbers or dates in another notation."""
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
        """Names of the classes, sorted."""
        return sort_names(self.codes, self.notation)

    def encoded(self) -> np.ndarray:
        """Return the class numbers of all rows, int64. Raises DataError if they cannot be learned."""
        for name, place in self.only_held_out.items() if self.is_first else ():
            raise DataError(f"{self.path}, {place}, column `{self.name}`: no row of train has the class `{name}`")
        if len(self.codes) == 1:
            raise DataError(f"{self.path}, column `{self.name}`: every target is `{self.classes[0]}`: nothing to learn")
        if self.is_first and not self.is_listed:
            self._check_notation()
        order = {name: number for number, name in enumerate(self.classes)}
        targets = np.array([order[name] for name in self.codes], np.int64)[np.concatenate(self.seen)]
        once = int((np.bincount(targets) == 1).sum())
        if self.is_first and not self.is_listed and len(targets) >= FEW_ROWS and once > len(targets) / 2:
            raise DataError(
                f"{self.path}, column `{self.name}`: {once} of {len(targets)} rows have a target that no other row "
                "has: nothing can be learned from it; name another column in data.params.target, or set "
                "data.params.task: regression to predict a number"
            )
        return targets

    def summary(self) -> str:
        """Return a line that describes the target."""
        some = ", ".join(self.classes[:SHOWN]) + (", ..." if len(self.classes) > SHOWN else "")
        return f"`{self.name}`: target, {len(self.classes)} classes ({some})"


@dataclass
class Numbers(ColumnReader):
    """The target of a regression."""

    seen: list[np.ndarray] = field(default_factory=list)
    classes: tuple[str, ...] = ()

    def add(self, piece: Piece, in_train: np.ndarray) -> None:
        """Add the next rows."""
        numbers, is_text = self.numbers(piece)
        if is_text.any():
            row = int(is_text.argmax())
            text = piece.values[self.name][row]
            hint = f"for names set data.params.task: classification{self._advice([str(text)])}"
            self.reject(piece, row, f"the target `{text}` is not a number; {hint}")
        if (bad := np.isnan(numbers)).any():
            self._reject_missing(piece, int(bad.argmax()))
        self.seen.append(numbers)

    def encoded(self) -> np.ndarray:
        """Return the targets of all rows, float32. Raises DataError if they cannot be learned."""
        targets, where = np.concatenate(self.seen), f"{self.path}, column `{self.name}`"
        if (targets == targets[0]).all():
            raise DataError(f"{where}: every target is {targets[0]:g}: nothing to learn")
        if (merged := merged_in_float32(targets, tolerance=0.05)) is not None:
            raise DataError(
                f"{where}: the targets {merged[0]!r} and {merged[1]!r} are equal in float32, in which models compute; "
                "subtract a constant from the targets, or use a larger unit"
            )
        return targets.astype(np.float32)

    def summary(self) -> str:
        """Return a line that describes the target."""
        targets = np.concatenate(self.seen)
        return f"`{self.name}`: target, number, {targets.min():.10g} to {targets.max():.10g}"


@dataclass
class Label(ColumnReader):
    """A label, which a row has or does not have."""

    seen: list[np.ndarray] = field(default_factory=list)
    classes: tuple[str, ...] = ()  # its name is one of them, not its values

    def add(self, piece: Piece, in_train: np.ndarray) -> None:
        """Add the next rows."""
        values = piece.values[self.name]
        numbers, is_text = parse_numbers(values, self.notation)
        for row in np.flatnonzero(is_text).tolist():
            numbers[row] = TRUTH.get(str(values[row]).casefold(), -1)
        if (bad := np.isnan(numbers)).any():
            self._reject_missing(piece, int(bad.argmax()))
        if (bad := ~np.isin(numbers, (0, 1))).any():
            row = int(bad.argmax())
            value = f"{values[row]:g}" if isinstance(values, np.ndarray) else f"`{values[row]}`"
            hint = "set data.params.task: regression to predict numbers, or classification to predict one class"
            self.reject(piece, row, f"the label is {value}; allowed: 0 or 1, true or false; {hint}")
        self.seen.append(numbers.astype(np.uint8))

    def encoded(self) -> np.ndarray:
        """Return 0 or 1 for each row, uint8. Raises DataError if they cannot be learned."""
        labels = np.concatenate(self.seen)
        if (labels == labels[0]).all():
            raise DataError(
                f"{self.path}, column `{self.name}`: every label is {labels[0]}: nothing to learn; remove it from "
                "data.params.target"
            )
        return labels

    def summary(self) -> str:
        """Return a line that describes the label."""
        labels = np.concatenate(self.seen)
        return f"`{self.name}`: label, of {int(labels.sum()):,} of {len(labels):,} rows"


TargetColumn: TypeAlias = Classes | Numbers | Label
KINDS: dict[str, type[TargetColumn]] = {"classification": Classes, "regression": Numbers, "multilabel": Label}
