"""Tables: numeric and categorical columns of a CSV or Parquet file, and targets: a class, numbers or labels.

A column of numbers is numeric, a column without numbers is categorical, and a column with both is rejected. Inputs are
float32 [n, features]:

numeric       the number, or NaN if it is missing. If the column has missing numbers, a feature `<name> is missing`, 0
              or 1, follows. From numbers that are close together and far from 0, such as time stamps, a `centre` is
              subtracted, since float32 would merge them
categorical   0 for a missing value, 1 for a category that train does not have, then the other categories, sorted
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from workflow_lib.datasets._target_settings import TargetSettings
from workflow_lib.errors import DataError
from workflow_lib.plugins import DatasetFacts, Task
from workflow_lib.plugins.checksums import Checksums

if TYPE_CHECKING:
    import numpy as np

    from workflow_lib.data import Inputs, Manifest, Source, SourceFile
    from workflow_lib.datasets._columns import Column
    from workflow_lib.datasets._tables import Table
    from workflow_lib.datasets._targets import TargetColumn

log = logging.getLogger(__name__)

DESCRIBED_PIECES = 100  # pieces of 1,024 rows that `everstep plan` reads
LISTED_COLUMNS = 100  # columns that the log lists


class Params(TargetSettings, Checksums):
    """Settings of the file and of its columns."""

    path: Path = Field(description="CSV, Parquet or Excel (.xlsx) file, relative to the project's root")
    features: tuple[str, ...] | None = Field(
        None, min_length=1, description="columns to predict from; null: all other columns"
    )


def task(params: Params) -> Task:
    """Return the task, which is a setting."""
    return params.task


def known(params: Params) -> DatasetFacts:
    """Return the kind of the inputs, and the number of labels or of numbers to predict."""
    return DatasetFacts(
        "tables",
        classes=len(params.targets) if params.task == "multilabel" else None,
        outputs=len(params.targets) if params.task == "regression" else None,
    )


def look(params: Params, root: Path) -> DatasetFacts:
    """Return what is known. Raises DataError if the settings do not fit the columns that the file's header names."""
    with closing(_opened(params, root / params.path)) as table:
        _feature_names(table, params)
    return known(params)


def open_source(params: Params, root: Path) -> Source:
    """Return the rows of the file, after a scan that checked all of them."""
    from workflow_lib.data import SourceFile

    params.verify(root / params.path)
    with ExitStack() as resources:
        table = resources.enter_context(closing(_opened(params, root / params.path)))
        source = _source(table, SourceFile.of(table.path), params)
        return replace(source, close=resources.pop_all().close)


def open_inputs(params: Params, path: Path, manifest: Manifest) -> Inputs:
    """Return the rows of a table that has the features of the training; other columns, such as the target, may differ.

    Missing numbers of a column that had none, and categories that train did not have, are read as the training would,
    with a warning. A row is named by its number in the file, from 0.
    """
    from workflow_lib.datasets._new_rows import open_rows

    with ExitStack() as resources:
        table = resources.enter_context(closing(_opened(params, path)))
        return replace(open_rows(table, manifest.features, params.notation), close=resources.pop_all().close)


def describe(params: Params, root: Path) -> list[str]:
    """Return a line for each column with its kind and its range or categories, from at most the first 102,400 rows."""
    with closing(_opened(params, root / params.path)) as table:
        columns, targets, rows = _scan(table, params, pieces=DESCRIBED_PIECES)
        samples = sum(len(part) for parts in rows.values() for part in parts)
        if not (is_part := len(rows["train"]) == DESCRIBED_PIECES):
            for column in columns:
                column.encoding()  # rejects what preprocess would reject
            for target in targets:
                target.encoded()
        lines = [column.summary() for column in (*targets, *columns)]
        return [*lines, f"(in the first {samples:,} rows)"] if is_part else lines


def _opened(params: Params, path: Path) -> Table:
    from workflow_lib.datasets._tables import open_table

    sheet = params.sheet if path.name == params.path.name or path.suffix.lower() == ".xlsx" else None
    return open_table(path, params.delimiter, params.decimal, sheet=sheet)


def _scan(
    table: Table, params: Params, learned_rows: np.ndarray | None = None, pieces: int | None = None
) -> tuple[list[Column], list[TargetColumn], dict[str, list[np.ndarray]]]:
    """Read the file, or its first pieces; return the features, the targets and the row numbers of each split.

    `learned_rows` masks the rows from which categories and missing values are learned; None: the rows of train.
    """
    from workflow_lib.data import SPLITS
    from workflow_lib.datasets._columns import Column
    from workflow_lib.datasets._tables import splits_of
    from workflow_lib.datasets._targets import KINDS

    names, is_first = _feature_names(table, params), learned_rows is None
    notation = params.notation
    columns = [Column(table.path, name, notation, name in params.categorical, is_first) for name in names]
    kind = KINDS[params.task]
    targets = [kind(table.path, name, notation, name in params.categorical, is_first) for name in params.targets]
    rows: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    wanted = [*names, *params.targets, *([params.split] if params.split else [])]
    for piece in itertools.islice(table.scan(wanted), pieces):
        splits = splits_of(table.path, params.split, piece)
        in_train = splits == "train" if learned_rows is None else learned_rows[piece.rows]
        for column in (*columns, *targets):
            column.add(piece, in_train)
        for split in SPLITS:
            rows[split].append(piece.rows[splits == split])
    if not any(map(len, rows["train"])):
        raise DataError(f"{table.path}: has no rows of train")
    return columns, targets, rows


def _source(table: Table, file: SourceFile, params: Params, learned_rows: np.ndarray | None = None) -> Source:
    """Return the source, with categories and missing values learned from rows as in `_scan`."""
    import numpy as np

    from workflow_lib.data import Source

    columns, target_columns, rows = _scan(table, params, learned_rows)
    names = [column.name for column in columns]
    where = {split: np.concatenate(parts) for split, parts in rows.items() if any(map(len, parts))}
    inputs = [column.encoding() for column in columns]
    encoded = [column.encoded() for column in target_columns]
    is_alone = params.task != "multilabel" and isinstance(params.target, str)
    targets = encoded[0] if is_alone else np.stack(encoded, axis=1)
    if learned_rows is None:
        _log_columns(columns, target_columns)

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
        learn_from=learn_from if any(encoding.depends_on_rows for encoding in inputs) else None,
        is_thread_safe=True,
        sample_names=lambda split, wanted: {"row": where[split][wanted]},
        classes=params.targets if params.task == "multilabel" else target_columns[0].classes,
        outputs=params.targets if params.task == "regression" and not is_alone else (),
        features=tuple(feature for encoded in inputs for feature in encoded.features),
        files=(file,),
    )


def _log_columns(columns: list[Column], targets: Sequence[TargetColumn]) -> None:
    """Log the kind of each column and warn of probable mistakes. Raises DataError if every feature is constant."""
    if all(column.is_constant for column in columns):
        raise DataError(
            f"{columns[0].path}: every row has the same value in each feature ({', '.join(c.name for c in columns)}): "
            "nothing to learn from"
        )
    for column in (*targets[:LISTED_COLUMNS], *columns[:LISTED_COLUMNS]):
        log.info("table: %s", column.summary())
    if len(columns) > LISTED_COLUMNS:
        log.info("table: ... and %d more columns, which `everstep plan` lists", len(columns) - LISTED_COLUMNS)
    for column in (*targets, *columns):
        for warning in column.warnings():
            log.warning("%s", warning)


def _feature_names(table: Table, params: Params) -> list[str]:
    """Return the columns to predict from. Raises DataError for settings that do not fit the columns of the file."""
    from workflow_lib.datasets._tables import check_column, check_names

    check_names(table)
    settings = {
        "target": params.targets,
        "split": [params.split] if params.split else [],
        "categorical": params.categorical,
    }
    for setting, names in (settings | {"features": params.features or ()}).items():
        for name in names:
            check_column(table, setting, name)
    others = [name for name in table.columns if name not in (*params.targets, params.split)]
    for name in params.features or ():
        if name not in others:
            raise DataError(
                f"{table.path}: column `{name}` is the target or the split; remove it from data.params.features"
            )
    features = [name for name in others if params.features is None or name in params.features]
    if not features:
        raise DataError(f"{table.path}: has no column besides the target and the split; add one to predict from")
    if "" in features:
        raise DataError(
            f"{table.path}: column {table.columns.index('') + 1} has no name (row numbers?); name it, or list the "
            "columns to use in data.params.features"
        )
    for name in (*features, *params.targets):
        if name in table.unusable:
            raise DataError(
                f"{table.path}: column `{name}` has type {table.unusable[name]}; allowed: numbers, strings, booleans; "
                "convert it, or leave it out of data.params.features"
            )
    return features
