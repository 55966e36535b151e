"""Rows of a CSV or Parquet file: numbers and categories, and a target, which is a class or a number.

A column whose values are all numbers is numeric, one that has none is categorical; one with both is refused, so that a
slip of the pen does not make a category of each number. In inputs [n, features], all float32:

numeric       the number, NaN where it is missing; if any is, a feature `<name> is missing`, 0 or 1, follows it; numbers
              that lie together far from 0, as time stamps do, less a `centre`, since float32 would merge them
categorical   0 where it is missing, 1 for a category that no row of train has, then the others, sorted
"""

from __future__ import annotations

import difflib
import itertools
import logging
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationInfo, field_validator

from workflow_lib.errors import DataError
from workflow_lib.plugins import DatasetFacts, Task
from workflow_lib.plugins.checksums import Checksums

if TYPE_CHECKING:
    import numpy as np

    from workflow_lib.data import Source, SourceFile
    from workflow_lib.datasets._columns import Column
    from workflow_lib.datasets._tables import Piece, Table
    from workflow_lib.datasets._targets import Classes, Numbers

log = logging.getLogger(__name__)

DESCRIBED_PIECES = 100  # of 1,024 rows, read for `everstep plan`
TOLD = 100  # columns that the log lists


class Params(Checksums):
    """The file, and what its columns mean."""

    path: Path = Field(description="the CSV or Parquet file, relative to the project's root")
    target: str = Field(description="the column that is predicted")
    task: Literal["classification", "regression"] = Field(
        "classification", description="whether the target is a class or a number"
    )
    features: tuple[str, ...] | None = Field(
        None, min_length=1, description="the columns it is predicted from; null: all others"
    )
    categorical: tuple[str, ...] = Field(
        (),
        description="columns whose values are names as they are written, though they look like numbers or are many",
    )
    split: str | None = Field(
        None, description="a column that says train, val or test for each row; null: the splits are drawn"
    )
    missing: tuple[str, ...] = Field(
        ("", "NA", "N/A", "NaN", "nan", "null"), description="texts that mean that a value is missing"
    )
    decimal: Literal[".", ","] = Field(".", description="the decimal mark of numbers that are written as text")
    thousands: Literal[",", ".", " ", "'"] | None = Field(
        None, description="what stands between the thousands of such numbers; a space of any width"
    )
    delimiter: str = Field(",", min_length=1, max_length=1, description="what stands between the values of a CSV file")

    @field_validator("thousands", mode="after")
    @classmethod
    def _is_not_the_decimal_mark(cls, thousands: str | None, info: ValidationInfo) -> str | None:
        if thousands is not None and thousands == info.data.get("decimal"):
            raise ValueError(f"`{thousands}` is the decimal mark already (data.params.decimal)")
        return thousands


def task(params: Params) -> Task:
    """What is learnt from the file."""
    return params.task


def known(params: Params) -> DatasetFacts:
    """Rows of a table."""
    return DatasetFacts("tables")


def open_source(params: Params, root: Path) -> Source:
    """The rows of the file, which has been read and checked from end to end."""
    from workflow_lib.data import SourceFile

    params.verify(root / params.path)
    with ExitStack() as resources:
        table = resources.enter_context(closing(_opened(root / params.path, params)))
        source = _source(table, SourceFile.of(table.path), params)
        return replace(source, close=resources.pop_all().close)


def _opened(path: Path, params: Params) -> Table:
    from workflow_lib.datasets._tables import CsvTable, ParquetTable

    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "there is no such file"
        raise DataError(f"{path}: {what} (data.params.path)")
    if path.suffix.lower() in (".parquet", ".pq"):
        return ParquetTable(path, params.decimal)
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return CsvTable(path, params.delimiter)
    raise DataError(f"{path}: neither .csv, .tsv or .txt nor .parquet or .pq")


def describe(params: Params, root: Path) -> list[str]:
    """A line for each column, its kind and what it holds; of a large file, in its first rows."""
    with closing(_opened(root / params.path, params)) as table:
        columns, target, rows = _learnt(table, params, pieces=DESCRIBED_PIECES)
        samples = sum(len(part) for parts in rows.values() for part in parts)
        if not (is_part := len(rows["train"]) == DESCRIBED_PIECES):
            for column in (*columns, target):
                column.encoded()  # rejects what preprocess would reject
        lines = [column.told() for column in (target, *columns)]
        return [*lines, f"(in the first {samples:,} rows)"] if is_part else lines


def _learnt(
    table: Table, params: Params, is_learnt_from: np.ndarray | None = None, pieces: int | None = None
) -> tuple[list[Column], Classes | Numbers, dict[str, list[np.ndarray]]]:
    """The columns, the target and the rows of each split, after the rows of the file, or its first pieces, went by."""
    from workflow_lib.data import SPLITS
    from workflow_lib.datasets._columns import Column
    from workflow_lib.datasets._notation import Notation
    from workflow_lib.datasets._targets import Classes, Numbers

    names, is_first = _features(table, params), is_learnt_from is None
    notation = Notation(frozenset(params.missing), params.decimal, params.thousands)
    columns = [Column(table.path, name, notation, name in params.categorical, is_first) for name in names]
    kind: type[Classes | Numbers] = Classes if params.task == "classification" else Numbers
    target = kind(table.path, params.target, notation, params.target in params.categorical, is_first)
    rows: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    wanted = [*names, params.target, *([params.split] if params.split else [])]
    for piece in itertools.islice(table.scan(wanted), pieces):
        splits = _splits(table.path, params.split, piece)
        in_train = splits == "train" if is_learnt_from is None else is_learnt_from[piece.rows]
        for column in (*columns, target):
            column.add(piece, in_train)
        for split in SPLITS:
            rows[split].append(piece.rows[splits == split])
    if not any(map(len, rows["train"])):
        raise DataError(f"{table.path}: has no rows to train from")
    return columns, target, rows


def _source(table: Table, file: SourceFile, params: Params, is_learnt_from: np.ndarray | None = None) -> Source:
    """The rows; what the columns have is learnt from those of train, or of all rows of the file from these alone."""
    import numpy as np

    from workflow_lib.data import Source

    columns, target, rows = _learnt(table, params, is_learnt_from)
    names = [column.name for column in columns]
    where = {split: np.concatenate(parts) for split, parts in rows.items() if any(map(len, parts))}
    inputs = [column.encoded() for column in columns]
    targets = target.encoded()
    if is_learnt_from is None:
        _tell(columns, target)

    def read(split: str, wanted: np.ndarray) -> np.ndarray:
        pieces = table.take(where[split][wanted], names)
        return np.concatenate([np.stack([c for e in inputs for c in e.columns(piece)], axis=1) for piece in pieces])

    def learn_from(wanted: np.ndarray) -> Source:
        is_wanted = np.zeros(len(targets), bool)
        is_wanted[where["train"][wanted]] = True
        return _source(table, file, params, is_wanted)

    return Source(
        task=params.task,
        targets={split: targets[places] for split, places in where.items()},
        read=read,
        learn_from=learn_from if any(one.depends_on_rows for one in inputs) else None,
        is_thread_safe=True,
        classes=target.classes,
        features=tuple(feature for encoded in inputs for feature in encoded.features),
        files=(file,),
    )


def _tell(columns: list[Column], target: Classes | Numbers) -> None:
    """The log says of each column what it is taken for; columns that all say nothing are refused."""
    if all(column.is_constant for column in columns):
        raise DataError(
            f"{columns[0].path}: every row has the same value in each feature ({', '.join(c.name for c in columns)}): "
            "nothing to learn from"
        )
    for column in (target, *columns[:TOLD]):
        log.info("table: %s", column.told())
    if len(columns) > TOLD:
        log.info("table: ... and %d more columns, which `everstep plan` lists", len(columns) - TOLD)
    if not target.classes:
        target.warn_small()
    for column in columns:
        column.warn()


def _features(table: Table, params: Params) -> list[str]:
    """The columns to predict from, which the file has and can be read."""
    if not table.columns:
        raise DataError(f"{table.path}: is empty; the first line names the columns")
    if twice := [name for name, count in Counter(table.columns).items() if count > 1]:
        raise DataError(f"{table.path}: {table.columns.count(twice[0])} columns are called `{twice[0]}`; rename them")
    asked = {
        "target": [params.target],
        "split": [params.split] if params.split else [],
        "categorical": params.categorical,
    }
    for setting, names in (asked | {"features": params.features or ()}).items():
        for name in names:
            _refuse_unknown(table, setting, name)
    others = [name for name in table.columns if name not in (params.target, params.split)]
    for name in params.features or ():
        if name not in others:
            raise DataError(
                f"{table.path}: column `{name}` is the target or the split, and cannot be one of the features"
            )
    features = [name for name in others if params.features is None or name in params.features]
    if not features:
        raise DataError(f"{table.path}: has no column besides the target; there is nothing to predict from")
    if "" in features:
        raise DataError(
            f"{table.path}: column {table.columns.index('') + 1} has no name, as when row numbers were saved too; name "
            "it, or say in data.params.features which columns to use"
        )
    for name in (*features, params.target):
        if name in table.unusable:
            raise DataError(
                f"{table.path}: column `{name}` has type {table.unusable[name]}; numbers and strings can be used: "
                "convert it, or leave it out of data.params.features"
            )
    return features


def _refuse_unknown(table: Table, setting: str, name: str) -> None:
    if name not in table.columns:
        near = difflib.get_close_matches(name, table.columns, 1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        there = ", ".join(table.columns)
        raise DataError(f"{table.path}: has no column `{name}` (data.params.{setting}){hint} (there are: {there})")


def _splits(path: Path, column: str | None, piece: Piece) -> np.ndarray:
    """The name of each row's split."""
    import numpy as np

    from workflow_lib.data import SPLITS

    if column is None:
        return np.full(len(piece.rows), "train")
    for value, place in zip(piece.values[column], piece.places, strict=True):
        if value not in SPLITS:
            raise DataError(f"{path}, {place}, column `{column}`: `{value}` is no split; they are {', '.join(SPLITS)}")
    return np.array(piece.values[column])
