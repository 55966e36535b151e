"""Settings for a table: its delimiter, target, task and columns, guessed from its first rows."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib.errors import DataError
from workflow_lib.start.guess import Guess, counts_of, of_classes

if TYPE_CHECKING:
    import pandas as pd

DELIMITERS = (",", ";", "\t", "|")
TARGETS = ("target", "label", "class", "y", "outcome", "price", "category", "species", "quality", "score")
MOST_ROWS = 100_000  # that are looked at
MOST_CLASSES = 20  # different whole numbers that are classes rather than a quantity
MOST_COLUMNS = 30  # that are listed in `features`
SPLITS = ({"train", "test"}, {"train", "val"}, {"train", "val", "test"})
WORDS = 5  # a column with more words in the mean holds texts


def of_table(path: Path) -> Guess:
    """Return settings for a CSV or Parquet file. Raises DataError if it is not a readable table."""
    delimiter = "," if path.suffix.lower() in (".parquet", ".pq") else _delimiter(path)
    frame, decimal = _read(path, delimiter)
    if frame.shape[1] < 2 or frame.empty:
        raise DataError(
            f"--data {path}: {frame.shape[0]} rows, {frame.shape[1]} columns; needed: a row and two columns"
        )
    target = next((c for name in TARGETS for c in frame.columns if c.lower() == name), frame.columns[-1])
    others = [column for column in frame.columns if column != target]
    split = next((c for c in others if {*frame[c].dropna().unique()} in SPLITS), None)
    texts = [c for c in others if c != split and _is_text(frame[c])]
    is_number = _is_quantity(frame[target])
    params: dict[str, Any] = {"path": str(path), "target": target}
    rows = f"{'at least ' if len(frame) == MOST_ROWS else ''}{len(frame):,} rows, {frame.shape[1]} columns"
    if texts and not is_number:
        made = Guess(
            {"name": "labelled_text", "params": {"path": str(path), "text": texts[0], "target": target}},
            {
                "model": {"name": "text_encoder"},
                "training": {"epochs": 10, "batch_size": 32, "clip_norm": 1.0, "select_metric": "val_accuracy"},
            },
            [rows, f"texts in {texts[0]!r}, their classes in {target!r}"],
        )
    else:
        task = "regression" if is_number else "classification"
        made = Guess(
            {"name": "table", "params": params | {"task": task}},
            {
                "model": {"name": "tabular"},
                "training": {"epochs": 50, "batch_size": 64, "early_stopping": {"metric": "val_loss", "patience": 10}},
            },
            [rows, f"target {target!r}: {task}"],
        )
        _look_at_columns(frame, target, [c for c in others if c != split], made)
        if decimal == ",":
            made.data["params"]["decimal"] = ","
    if delimiter != ",":
        made.data["params"]["delimiter"] = delimiter
        made.found.append(f"delimiter {delimiter!r}")
    if split is not None:
        made.data["params"]["split"] = split
        made.found.append(f"splits in column {split!r}")
    _look_at_target(frame, target, is_number, made)
    made.fit_batches(len(frame))
    return made


def _delimiter(path: Path) -> str:
    """Return the delimiter that gives the first lines most columns, and each as many."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head = [line for line, _ in zip(file, range(50), strict=False)]
    except UnicodeDecodeError as error:
        raise DataError(f"--data {path}: is not UTF-8 at byte {error.start}; convert it") from error
    columns = {d: [len(row) for row in csv.reader(head, delimiter=d) if row] for d in DELIMITERS}
    even = {d: rows[0] for d, rows in columns.items() if rows and len(set(rows)) == 1}
    return max(even, key=lambda d: even[d]) if even else ","


def _read(path: Path, delimiter: str) -> tuple[pd.DataFrame, str]:
    """Return the first rows, and the decimal mark."""
    import pandas as pd

    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return pd.read_parquet(path).head(MOST_ROWS), "."
        frame = pd.read_csv(path, sep=delimiter, nrows=MOST_ROWS)
        if delimiter != "," and any(_has_commas(frame[c]) for c in frame.columns):
            return pd.read_csv(path, sep=delimiter, nrows=MOST_ROWS, decimal=","), ","
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"--data {path}: not a readable table: {str(error).splitlines()[0]}") from error
    return frame, "."


def _has_commas(column: pd.Series[Any]) -> bool:
    values = column.dropna().astype(str)
    return len(values) > 0 and bool(values.str.fullmatch(r"-?\d+,\d+").mean() > 0.5)


def _is_text(column: pd.Series[Any]) -> bool:
    values = column.dropna().head(1000)
    return len(values) > 0 and bool(values.map(lambda v: len(v.split()) if isinstance(v, str) else 0).mean() > WORDS)


def _is_quantity(column: pd.Series[Any]) -> bool:
    """Return True for numbers with fractions, or with many different values."""
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return False
    values = column.dropna()
    return bool((values % 1 != 0).any() or values.nunique() > MOST_CLASSES)


def _look_at_target(frame: pd.DataFrame, target: str, is_number: bool, made: Guess) -> None:
    column = frame[target]
    if missing := int(column.isna().sum()):
        made.odd.append(f"{target!r} lacks {missing:,} of {len(frame):,} values; remove these rows")
    if is_number:
        made.found.append(f"{target!r}: from {column.min():g} to {column.max():g}, mean {column.mean():.4g}")
        return
    classes = {str(name): int(n) for name, n in column.value_counts().items()}
    made.found.append(counts_of(classes))
    made.odd += of_classes(classes)


def _look_at_columns(frame: pd.DataFrame, target: str, columns: Sequence[str], made: Guess) -> None:
    """Add what is odd about the columns; leave out those from which nothing can be learned."""
    useless = [c for c in columns if frame[c].nunique(dropna=True) <= 1]
    names = [c for c in columns if c not in useless and _is_name(frame[c])]
    made.odd += [f"column {c!r} has one value only" for c in useless]
    made.odd += [f"column {c!r} differs in each row, so it may be a name or number of the row" for c in names]
    missing = {c: int(frame[c].isna().sum()) for c in columns if c not in useless and frame[c].isna().any()}
    made.odd += [f"column {c!r} lacks {n:,} of {len(frame):,} values" for c, n in missing.items()]
    if repeated := int(frame.duplicated().sum()):
        made.odd.append(f"{repeated:,} rows are copies of others: a copy in another split makes its metrics too good")
    kept = [c for c in columns if c not in (*useless, *names)]
    if kept and len(kept) < len(columns) <= MOST_COLUMNS:
        made.data["params"]["features"] = kept


def _is_name(column: pd.Series[Any]) -> bool:
    """Return True if the values are texts or whole numbers, each of them once."""
    import pandas as pd

    if pd.api.types.is_float_dtype(column) or len(column) < 20 or not column.is_unique:
        return False
    return not pd.api.types.is_numeric_dtype(column) or bool((column.diff().dropna() == 1).all())
