"""The table of samples beside a manifest: `<data id>.splits.csv` says which row or file is which sample of which split.

A line has the split, the number of the sample in it, and the columns that name the sample, such as `row` or `file`. Of
large data that is read in place, a line has a run of consecutive rows, since there can be billions.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workflow_lib.data.manifest import Manifest
from workflow_lib.data.source import Source
from workflow_lib.errors import DataError
from workflow_lib.files import file_digest, open_atomic

if TYPE_CHECKING:
    from workflow_lib.data.in_place import SplitRows
    from workflow_lib.data.splits import Part

log = logging.getLogger(__name__)

MOST_NAMED = 1 << 23  # samples; a table of more would be larger than many data sets
MOST_LISTED = 1 << 20  # samples of data that is read in place; the table is small beside the data
CHUNK_ROWS = 4096
RUNS = ("split", "sample", "of", "row", "rows")  # columns of data that is read in place

Columns = Mapping[str, Sequence[Any]]


def names_file(manifest: Path) -> Path:
    """Return the path of the table beside a manifest."""
    return manifest.with_name(f"{manifest.name.removesuffix('.json')}.splits.csv")


def write_names(path: Path, source: Source, parts: Mapping[str, Part]) -> str:
    """Write the table, and return its digest; an empty text, and no table, if there are too many samples."""
    path.unlink(missing_ok=True)
    samples = sum(len(part.rows) for part in parts.values())
    if samples > MOST_NAMED:
        log.warning("%s samples are more than %s: no table says which split each of them is in", samples, MOST_NAMED)
        return ""
    return _write(path, _lines(source, parts))


def write_names_in_place(path: Path, source: Source, splits: Mapping[str, SplitRows]) -> str:
    """Write the table of data that is read in place, and return its digest: a line for each sample, or for each run."""
    if source.sample_names is not None and sum(map(len, splits.values())) <= MOST_LISTED:
        return _write(path, _lines(source, splits))

    def lines() -> Iterator[Sequence[Any]]:
        yield RUNS
        for name, split in splits.items():
            sample = 0
            for start, stop in split.rows.runs.tolist():
                yield name, sample, split.origin, start, stop - start
                sample += stop - start

    return _write(path, lines())


def _write(path: Path, lines: Iterator[Sequence[Any]]) -> str:
    with open_atomic(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        csv.writer(text, lineterminator="\n").writerows(lines)
        text.flush()
        text.detach()
    return file_digest(path)


def _lines(source: Source, parts: Mapping[str, Part] | Mapping[str, SplitRows]) -> Iterator[Sequence[Any]]:
    header: tuple[str, ...] = ()
    for split, part in parts.items():
        for start in range(0, len(part.rows), CHUNK_ROWS):
            rows = part.rows[np.arange(start, min(start + CHUNK_ROWS, len(part.rows)))]
            columns = source.names_of(part.origin, rows)
            if not header:
                header = tuple(columns)
                yield "split", "sample", *header
            if tuple(columns) != header or any(len(values) != len(rows) for values in columns.values()):
                raise DataError(
                    f"Source.sample_names(`{part.origin}`, {len(rows)} rows) gave columns {', '.join(columns)}; "
                    "allowed: the same columns for every split, with a value for each row"
                )
            listed = [np.asarray(values).tolist() for values in columns.values()]
            for number, values in enumerate(zip(*listed, strict=True), start):
                yield split, number, *values


def names_of_split(path: Path, manifest: Manifest, split: str) -> dict[str, list[str]] | None:
    """Return the columns that name the samples of a split, from the table beside a manifest; None if it has none.

    Raises DataError if the table is missing or damaged.
    """
    table = names_file(path)
    if not manifest.names:
        log.info(
            "%s: predictions.csv has no names of rows or files: the data is too large, or an older version prepared "
            "it; snakemake --forcerun preprocess writes them",
            path,
        )
        return None
    if not table.is_file() or file_digest(table) != manifest.names:
        raise DataError(
            f"{table}: missing or damaged; run preprocess again (snakemake --forcerun preprocess), which writes it"
        )
    with table.open(encoding="utf-8", newline="") as file:
        header, *lines = (line for number, line in enumerate(csv.reader(file)) if number == 0 or line[0] == split)
    if tuple(header) == RUNS:
        return _expanded(lines)
    return {name: [line[place] for line in lines] for place, name in enumerate(header) if place >= 2}


def _expanded(runs: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Return the source's split and the row of each sample."""
    pairs = [(of, row) for _, _, of, first, rows in runs for row in range(int(first), int(first) + int(rows))]
    return {"of": [of for of, _ in pairs], "row": [str(row) for _, row in pairs]}


def with_names(predictions: str, names: Columns | None) -> str:
    """Return the text of predictions.csv with the columns of the names first; the next, `sample`, is their place."""
    if names is None or not predictions.startswith("sample"):
        return predictions
    text, columns = io.StringIO(), list(names.values())
    writer = csv.writer(text, lineterminator="\n")
    lines = csv.reader(io.StringIO(predictions))
    writer.writerow([*names, *next(lines)])
    for line in lines:
        sample = int(line[0])
        writer.writerow([*(values[sample] for values in columns), *line])
    return text.getvalue()
