"""Texts with classes as they are in their files: a table, folders, or sources of Python's standard library."""

from __future__ import annotations

import itertools
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workflow_lib.data import SPLITS, SourceFile
from workflow_lib.datasets._folder import class_folders, entries, files_below, map_files, split_folders
from workflow_lib.datasets._notation import Notation
from workflow_lib.datasets._tables import Piece, Table, check_column, open_table, splits_of
from workflow_lib.datasets._targets import Classes
from workflow_lib.datasets.labelled_text import LIBRARY, Params
from workflow_lib.errors import DataError
from workflow_lib.files import in_utf8

PASSAGES = 6  # of each file of the library


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts as they are in their files: `read` returns those of some rows of a split."""

    targets: dict[str, np.ndarray]
    classes: tuple[str, ...]
    read: Callable[[str, np.ndarray], list[str]]
    files: tuple[SourceFile, ...]
    name: Callable[[str, int], str]
    names: Callable[[str, np.ndarray], dict[str, Any]]
    row_digests: dict[str, list[str]]
    close: Callable[[], None] = lambda: None


def read_texts(params: Params, root: Path) -> Texts:
    """Return the texts at the path of the settings, or those of the library."""
    if params.path is None:
        return _library(params)
    return (_folder if (root / params.path).is_dir() else _table)(params, root / params.path)


def look_at_folder(params: Params, path: Path) -> int:
    """Return the number of classes from the names of the folders. Raises DataError if a split has none with a text."""
    found: dict[str, list[str]] = {}
    for split, folder in split_folders(path).items():
        classes = [entry for entry in entries(folder) if entry.is_dir()]
        found[split] = [entry.name for entry in classes]
        _check_classes(path, split, found[split], found["train"])
        if not any(file.match(params.pattern) for entry in classes for file in files_below(entry)):
            raise DataError(f"{folder}: no file matches `{params.pattern}` (data.params.pattern)")
    return len(found["train"])


def look_at_table(params: Params, path: Path) -> None:
    """Raise DataError if the header or the first rows of a table do not fit the settings."""
    with closing(open_table(path, params.delimiter)) as table:
        _check_columns(params, table)
        for piece in table.scan(_columns(params)):
            splits_of(path, params.split, piece)
            _check_texts(params, path, piece)
            break


def _folder(params: Params, path: Path) -> Texts:
    """Return the texts of the files in the folders of the classes."""
    found = {split: class_folders(folder, params.pattern) for split, folder in split_folders(path).items()}
    classes = tuple(found["train"])
    for split, folders in found.items():
        _check_classes(path, split, folders, classes)
    paths = {split: [path for files in folders.values() for path in files] for split, folders in found.items()}
    listed = [path for of_split in paths.values() for path in of_split]
    files = tuple(map_files(SourceFile.of, listed))
    digests = {file.path: file.digest for file in files}
    return Texts(
        targets={
            split: np.array([classes.index(name) for name, files in folders.items() for _ in files], np.int64)
            for split, folders in found.items()
        },
        classes=classes,
        read=lambda split, rows: [text_of(paths[split][row]) for row in rows],
        files=files,
        name=lambda split, row: str(paths[split][row]),
        names=lambda split, rows: {"file": [paths[split][row].relative_to(path).as_posix() for row in rows.tolist()]},
        row_digests={split: [digests[path] for path in of_split] for split, of_split in paths.items()},
    )


def _check_classes(path: Path, split: str, names: Iterable[str], classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise DataError(
            f"{path}: needs folders of texts for at least two classes; it has {', '.join(classes) or 'none'}"
        )
    for name in sorted(set(names) - set(classes)):
        raise DataError(f"{path / split / name}: is not a class of train; train must have every class")


def text_of(path: Path) -> str:
    """Return the text of a file. Raises DataError if it is not UTF-8."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        where = f"{path}: not UTF-8 at byte {error.start}"
        raise DataError(f"{where}; {in_utf8(path)}, or exclude it with data.params.pattern") from error


def _library(params: Params) -> Texts:
    """Return passages of Python's standard library; of five files of a package, one is in val and one in test."""
    passages: dict[str, list[tuple[Path, int]]] = {"train": [], "val": [], "test": []}
    targets: dict[str, list[int]] = {split: [] for split in passages}
    files = []
    for number, package in enumerate(LIBRARY):
        for place, path in enumerate(sorted((Path(sysconfig.get_path("stdlib")) / package).glob("*.py"))):
            split = {3: "val", 4: "test"}.get(place % 5, "train")
            size = path.stat().st_size // params.length
            starts = [start * params.length for start in range(min(size, PASSAGES))]
            passages[split] += [(path, start) for start in starts]
            targets[split] += [number] * len(starts)
            files += [SourceFile.of(path)] * bool(starts)

    def read(split: str, rows: np.ndarray) -> list[str]:
        texts = []
        for row in rows:
            path, start = passages[split][row]
            with path.open("rb") as file:
                file.seek(start)
                texts.append(file.read(params.length).decode(errors="ignore"))
        return texts

    def named(split: str, rows: np.ndarray) -> dict[str, Any]:
        places = [passages[split][row] for row in rows.tolist()]
        library = Path(sysconfig.get_path("stdlib"))
        return {
            "file": [path.relative_to(library).as_posix() for path, _ in places],
            "byte": [start for _, start in places],
        }

    return Texts(
        targets={split: np.array(numbers, np.int64) for split, numbers in targets.items()},
        classes=LIBRARY,
        read=read,
        files=tuple(files),
        name=lambda split, row: f"{passages[split][row][0]}, byte {passages[split][row][1]}",
        names=named,
        row_digests={},
    )


def _table(params: Params, path: Path) -> Texts:
    """Return the texts of a column of a file."""
    table = open_table(path, params.delimiter)
    try:
        _check_columns(params, table)
        target = Classes(path, params.target, Notation(frozenset({""})), is_listed=True)
        rows: dict[str, list[Any]] = {split: [] for split in SPLITS}
        for piece in table.scan(_columns(params)):
            splits = splits_of(path, params.split, piece)
            _check_texts(params, path, piece)
            target.add(piece, splits == "train")
            for split in SPLITS:
                rows[split].append(piece.rows[splits == split])
        targets = target.encoded()
    except BaseException:
        table.close()
        raise
    where = {split: np.concatenate(parts) for split, parts in rows.items() if any(map(len, parts))}

    def read(split: str, wanted: np.ndarray) -> list[str]:
        pieces = table.take(where[split][wanted], [params.text])
        return [str(text) for text in itertools.chain.from_iterable(piece.values[params.text] for piece in pieces)]

    return Texts(
        targets={split: targets[places] for split, places in where.items()},
        classes=target.classes,
        read=read,
        files=(SourceFile.of(path),),
        name=lambda split, row: f"{path}, row {int(where[split][row])}",
        names=lambda split, rows: {"row": where[split][rows]},
        row_digests={},
        close=table.close,
    )


def _columns(params: Params) -> list[str]:
    return [params.text, params.target, *([params.split] if params.split else [])]


def _check_columns(params: Params, table: Table) -> None:
    for setting, name in (("text", params.text), ("target", params.target), ("split", params.split)):
        if name is not None:
            check_column(table, setting, name)


def _check_texts(params: Params, path: Path, piece: Piece) -> None:
    if isinstance(piece.values[params.text], np.ndarray):
        raise DataError(f"{path}, column `{params.text}`: has numbers, not texts (data.params.text)")
    for text, place in zip(piece.values[params.text], piece.places, strict=True):
        if not text:
            raise DataError(f"{path}, {place}, column `{params.text}`: the text is empty; remove the row")
