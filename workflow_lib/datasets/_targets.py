"""The target column of a table: classes or numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from workflow_lib.data import merged_in_float32
from workflow_lib.datasets._notation import (
    LIKE_MISSING,
    NEARLY_ALL,
    folded,
    other_notation,
)
from workflow_lib.datasets._tables import Piece
from workflow_lib.datasets._values import FEW_ROWS, SHOWN, ColumnReader, in_order, texts
from workflow_lib.errors import DataError

MOST_CLASSES = 1_000


@dataclass
class Classes(ColumnReader):
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
class Numbers(ColumnReader):
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
