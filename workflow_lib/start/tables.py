"""Settings for a table: its delimiter, notation, target, task and columns, guessed from its first rows.

The rows are read, and the columns checked, by the code that reads them for a training: what it rejects is left out.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workflow_lib.datasets._columns import Column
from workflow_lib.datasets._excel import filled_sheets
from workflow_lib.datasets._notation import ADVISED, Notation, advice, other_notation
from workflow_lib.datasets._tables import Piece, check_names, open_table, splits_of
from workflow_lib.datasets._targets import KINDS
from workflow_lib.datasets._values import names_of, parse_numbers
from workflow_lib.datasets.table import DESCRIBED_PIECES, Params
from workflow_lib.errors import DataError
from workflow_lib.files import in_utf8
from workflow_lib.start import doubts
from workflow_lib.start.guess import Guess, counts_of, of_classes
from workflow_lib.start.missing import missing_texts
from workflow_lib.text import count

if TYPE_CHECKING:
    import pandas as pd

LONGEST_LINE = 1 << 20  # characters that are looked at
DELIMITERS = (",", ";", "\t", "|")
TARGETS = ("target", "label", "class", "y", "outcome", "price", "category", "species", "quality", "score")
MOST_CLASSES = 20  # different whole numbers that are classes rather than a quantity
MOST_COLUMNS = 30  # that are listed in `features` only because some of the others seem useless
SPLITS = ({"train", "test"}, {"train", "val"}, {"train", "val", "test"})
WORDS = 5  # a column with more words in the mean holds texts
MISSING: tuple[str, ...] = Params.model_fields["missing"].default


def of_table(path: Path) -> Guess:
    """Return settings for a CSV or Parquet file. Raises DataError if it is not a readable table."""
    rows = read(path)
    frame, pieces, notation, unusable = rows.frame, rows.pieces, rows.notation, rows.unusable
    target = target_of(frame)
    others = [column for column in frame.columns if column != target]
    split = next((c for c in others if {*frame[c].unique()} in SPLITS), None)
    texts = [c for c in others if c != split and _is_text(frame[c])]
    is_number = is_quantity(frame[target])
    params: dict[str, Any] = {"path": str(path), "target": target}
    is_part = len(pieces) == DESCRIBED_PIECES
    size = f"{'at least ' if is_part else ''}{len(frame):,} rows, {len(frame.columns) + len(unusable)} columns"
    if texts and not is_number:
        if rows.sheets:
            raise DataError(
                f"--data {path}: has texts, and {len(rows.sheets)} sheets ({', '.join(rows.sheets)}); save one as .csv"
            )
        made = Guess(
            {"name": "labelled_text", "params": {"path": str(path), "text": texts[0], "target": target}},
            {
                "model": {"name": "text_encoder"},
                "training": {"epochs": 10, "batch_size": 32, "clip_norm": 1.0, "select_metric": "val_accuracy"},
            },
            [size, f"texts in {texts[0]!r}, their classes in {target!r}"],
        )
    else:
        task = "regression" if is_number else "classification"
        made = Guess(
            {"name": "table", "params": params | {"task": task}},
            {
                "model": {"name": "tabular"},
                "training": {"epochs": 50, "batch_size": 64, "early_stopping": {"metric": "val_loss", "patience": 10}},
            },
            [size, f"target {target!r}: {task}"],
            rows.ambiguous,
        )
        made.odd += [f"left out: column {name!r} {why}" for name, why in unusable.items()]
        columns = [c for c in others if c != split]
        seems_useless = _useless(frame, columns, made)
        kept = [c for c in columns if c not in seems_useless or len(columns) > MOST_COLUMNS]
        checked = [Column(path, name, notation) for name in kept]
        kept = [c.name for c in checked if _can_be_read(c, pieces, split, made, warn=c.name not in seems_useless)]
        if not kept:
            raise DataError(f"--data {path}: no column to predict {target!r} from: {'; '.join(made.odd)}")
        if len(kept) < len(columns) or unusable:
            made.data["params"]["features"] = kept
        _can_be_read(KINDS[task](path, target, notation, is_first=not is_part), pieces, split, made)
        rows.write_notation(made)
        made.odd += doubts.of_columns(frame, columns)
    rows.write_file(made)
    if split is not None:
        made.data["params"]["split"] = split
        made.found.append(f"splits in column {split!r}")
    look_at_target(frame, target, is_number, made)
    made.odd += _of_names(list(frame.columns), path)
    made.fit_batches(len(frame))
    return made


def _of_names(columns: Sequence[str], path: Path) -> list[str]:
    """Return a warning if most names of the columns are numbers: the first line is then probably a row."""
    numbers = [name for name in columns if Notation().plain(name) is not None]
    if len(numbers) * 2 <= len(columns):
        return []
    first = ", ".join(numbers[:3])
    return [
        f"the first line of {path.name} must name the columns, but has numbers ({first}): if it is a row, add a line"
    ]


def delimiter_of(path: Path) -> str | None:
    """Return the delimiter that gives the first lines most columns, and each as many; None if there is none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = [line for line in (file.readline(LONGEST_LINE) for _ in range(50)) if line]
        columns = {d: [len(row) for row in csv.reader(head, delimiter=d) if row] for d in DELIMITERS}
    except UnicodeDecodeError as error:
        raise DataError(f"--data {path}: is not UTF-8 at byte {error.start}; {in_utf8(path)}") from error
    except csv.Error as error:
        raise DataError(f"--data {path}: is not a table of text, with a row in each line ({error})") from error
    even = {d: rows[0] for d, rows in columns.items() if rows and len(set(rows)) == 1 and rows[0] > 1}
    return max(even, key=lambda d: even[d]) if even else None


@dataclass(frozen=True)
class Rows:
    """The first rows of a table, and how they are written.

    Attributes:
        unusable: the reason why a column cannot be used, by name
        notation: the marks of numbers, and the texts that mean a missing value
        ambiguous: a line if another notation reads the numbers differently
        sheets: those of an Excel workbook if there are several; the first one is read
    """

    frame: pd.DataFrame
    pieces: Sequence[Piece]
    unusable: Mapping[str, str]
    delimiter: str
    notation: Notation
    ambiguous: list[str]
    sheets: Sequence[str]

    def write_notation(self, made: Guess) -> None:
        """Add the settings of numbers and missing values to a guess."""
        if self.notation.decimal != ".":
            made.data["params"]["decimal"] = self.notation.decimal
            made.found.append(f"decimal mark {self.notation.decimal!r}")
        if self.notation.thousands is not None:
            made.data["params"]["thousands"] = self.notation.thousands
            made.found.append(f"thousands are marked with {self.notation.thousands!r}")
        if more := sorted(self.notation.missing - set(MISSING)):
            made.data["params"]["missing"] = [*MISSING, *more]
            made.found.append(f"read as missing values: {', '.join(map(repr, more))}")

    def write_file(self, made: Guess) -> None:
        """Add the settings of the file to a guess."""
        if self.delimiter != ",":
            made.data["params"]["delimiter"] = self.delimiter
            made.found.append(f"delimiter {self.delimiter!r}")
        if self.sheets:
            made.data["params"]["sheet"] = self.sheets[0]
            made.odd.append(f"{len(self.sheets)} sheets: {', '.join(self.sheets)}; the first one is used")


def read(path: Path) -> Rows:
    """Return the first rows of a table. Raises DataError if it is not a readable table of two columns."""
    suffix = path.suffix.lower()
    delimiter = "," if suffix in (".parquet", ".pq", ".xlsx") else delimiter_of(path) or ","
    try:
        sheets = filled_sheets(path) if suffix == ".xlsx" else []
        pieces, unusable = _read(path, delimiter, sheets[0] if sheets[1:] else None)
    except DataError as error:
        raise DataError(f"--data {error}") from error
    names = list(pieces[0].values) if pieces else []
    if len(names) < 2:
        raise DataError(f"--data {path}: {count(len(names), 'usable column')} with rows; needed: a row and two columns")
    texts = {name: _texts(name, pieces) for name in names}
    notation, ambiguous = _notation(texts.values(), delimiter)
    notation = replace(notation, missing=frozenset((*MISSING, *missing_texts(texts.values(), notation))))
    sheets = sheets if sheets[1:] else []
    return Rows(_frame(pieces, notation), pieces, unusable, delimiter, notation, ambiguous, sheets)


def target_of(frame: pd.DataFrame) -> str:
    """Return the column with a usual name of a target, or else the last one."""
    return next((c for name in TARGETS for c in frame.columns if c.lower() == name), frame.columns[-1])


def _read(path: Path, delimiter: str, sheet: str | None) -> tuple[list[Piece], dict[str, str]]:
    """Return the first rows of the columns that can be used, and why others cannot, by name."""
    with closing(open_table(path, delimiter, sheet=sheet)) as table:
        if len(set(table.columns)) < len(table.columns) and (reasons := _of_names(table.columns, path)):
            raise DataError(f"{path}: {reasons[0]}")
        check_names(table)
        unusable = {name: f"has type {kind}" for name, kind in table.unusable.items()}
        if "" in table.columns:
            unusable[""] = "has no name (row numbers?)"
        usable = [name for name in table.columns if name not in unusable]
        return list(itertools.islice(table.scan(usable), DESCRIBED_PIECES)), unusable


def _texts(name: str, pieces: Sequence[Piece]) -> list[str]:
    """Return the different texts of a column that are no missing values."""
    columns = [values for piece in pieces if not isinstance(values := piece.values[name], np.ndarray)]
    return list(dict.fromkeys(text for column in columns for text in column if text and text not in MISSING))


def _notation(columns: Iterable[Sequence[str]], delimiter: str) -> tuple[Notation, list[str]]:
    """Return the notation that reads most texts as numbers, and a line if another one reads them differently."""
    texts = list(itertools.chain.from_iterable(columns))
    if not any(other_notation(text) == "a number in another notation" for text in texts):
        return Notation(), []
    candidates = [Notation(), *sorted(ADVISED, key=lambda notation: notation.decimal == delimiter)]
    best = max(candidates, key=lambda notation: sum(notation.plain(text) is not None for text in texts))
    differ = [text for text in texts if best.plain(text) is not None and Notation().plain(text) is None]
    found = advice(differ) if differ else ""
    ambiguous = [f"numbers can be read in two ways: {found}"] if "; " in found else []
    return best, ambiguous


def _frame(pieces: Sequence[Piece], notation: Notation) -> pd.DataFrame:
    """Return the rows: columns of numbers, and of names if they have a text."""
    import pandas as pd

    def values(name: str) -> Any:
        read = [parse_numbers(piece.values[name], notation) for piece in pieces]
        if any(is_text.any() for _, is_text in read):
            return pd.Series([text for p in pieces for text in names_of(p.values[name], notation)], dtype=object)
        numbers = np.concatenate([numbers for numbers, _ in read])
        is_whole = (np.abs(numbers) < 2**53) & (np.floor(numbers) == numbers)
        return numbers.astype(np.int64) if is_whole.all() else numbers

    return pd.DataFrame({name: values(name) for name in pieces[0].values})


def _can_be_read(column: Any, pieces: Sequence[Piece], split: str | None, made: Guess, *, warn: bool = True) -> bool:
    """Return True if the reader accepts a column; add its message if not, else its warnings."""
    is_target = not isinstance(column, Column)
    try:
        for piece in pieces:
            column.add(piece, splits_of(column.path, split, piece) == "train")
        if is_target:
            column.encoded()
        else:
            column.encoding()
    except DataError as error:
        message = str(error).removeprefix(f"{column.path}, ")
        made.odd.append(f"{'to correct' if is_target else 'left out'}: {message}")
        return False
    if warn:
        made.odd += [warning.removeprefix(f"{column.path}, ") for warning in column.warnings()]
    return True


def _is_text(column: pd.Series[Any]) -> bool:
    values = column.dropna().head(1000)
    return len(values) > 0 and bool(values.map(lambda v: len(v.split()) if isinstance(v, str) else 0).mean() > WORDS)


def is_quantity(column: pd.Series[Any]) -> bool:
    """Return True for numbers with fractions, or with many different values."""
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return False
    values = column.dropna()
    return bool((values % 1 != 0).any() or values.nunique() > MOST_CLASSES)


def look_at_target(frame: pd.DataFrame, target: str, is_number: bool, made: Guess) -> None:
    """Add the range or the classes of the target to a guess, and what is odd about them."""
    column = frame[target]
    if missing := int(column.isna().sum()):
        made.odd.append(f"{target!r} lacks {missing:,} of {len(frame):,} values; remove these rows")
    if is_number:
        made.found.append(f"{target!r}: from {column.min():g} to {column.max():g}, mean {column.mean():.4g}")
        made.odd += doubts.of_numbers(column)
        return
    classes = {str(name): int(n) for name, n in column.value_counts().items()}
    made.found.append(counts_of(classes))
    made.odd += [*of_classes(classes), *doubts.of_names(target, list(classes))]


def _useless(frame: pd.DataFrame, columns: Sequence[str], made: Guess) -> list[str]:
    """Return the columns from which nothing can be learned; add what is odd about the columns and rows."""
    useless = [c for c in columns if frame[c].nunique(dropna=True) <= 1]
    names = [c for c in columns if c not in useless and _is_name(frame[c])]
    left_out = "" if len(columns) > MOST_COLUMNS else "; left out"
    made.odd += [f"column {c!r} has one value only" + left_out for c in useless]
    made.odd += [f"column {c!r} differs in each row, so it may be a name or number of the row{left_out}" for c in names]
    missing = {c: int(frame[c].isna().sum()) for c in columns if c not in useless and frame[c].isna().any()}
    made.odd += [f"column {c!r} lacks {n:,} of {len(frame):,} values" for c, n in missing.items()]
    if repeated := int(frame.duplicated().sum()):
        rows = "1 row is a copy of another" if repeated == 1 else f"{repeated:,} rows are copies of others"
        made.odd.append(f"{rows}: a copy in another split makes its metrics too good")
    return [*useless, *names]


def _is_name(column: pd.Series[Any]) -> bool:
    """Return True if the values are texts or whole numbers, each of them once."""
    import pandas as pd

    if pd.api.types.is_float_dtype(column) or len(column) < 20 or not column.is_unique:
        return False
    return not pd.api.types.is_numeric_dtype(column) or bool((column.diff().dropna() == 1).all())
