"""The files of a folder, in one order on every machine: links are followed, hidden files are passed over."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from workflow_lib.data import SPLITS
from workflow_lib.errors import DataError

LIKE_SPLITS = {
    **dict.fromkeys(("train", "tr", "learn", "fit"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "validat", "dev", "development", "eval"), "val"),
    **dict.fromkeys(("test", "tst", "holdout", "heldout"), "test"),
}
HIDDEN = ("Thumbs.db", "desktop.ini")  # hidden on Windows; elsewhere a dot says so
TOGETHER = 64  # files that a thread takes at once

Result = TypeVar("Result")


def entries(folder: Path) -> list[Path]:
    """What is in the folder and not hidden, by name."""
    found = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in HIDDEN)
    for path in found:
        try:
            path.name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{str(path)!r}: its name is not UTF-8; rename it") from error
    return found


def files_below(folder: Path, inside: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Every file in the folder, at any depth; a link that leads nowhere or in a circle is refused."""
    real = folder.resolve()
    if real in inside:
        raise DataError(f"{folder}: a link to a folder that it lies in; remove it")
    for path in entries(folder):
        if path.is_dir():
            yield from files_below(path, (*inside, real))
        elif path.is_file():
            yield path
        else:
            what = "a link that leads nowhere" if path.is_symlink() else "neither a file nor a folder"
            raise DataError(f"{path}: is {what}; remove it")


def splits_of(folder: Path) -> dict[str, Path]:
    """The folders train, val and test where it has them; else the folder itself as train."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise DataError(f"{folder}: {what} (data.params.path)")
    names = {path.name for path in entries(folder) if path.is_dir()}
    if not names & set(SPLITS):
        _refuse_like_splits(folder, names)
        return {"train": folder}
    if others := sorted(names - set(SPLITS)):
        raise DataError(f"{folder / others[0]}: lies beside folders of splits, which are {', '.join(SPLITS)}; move it")
    if "train" not in names:
        raise DataError(f"{folder}: has a folder {min(names)}, but no folder train")
    return {split: folder / split for split in SPLITS if split in names}


def split_like(name: str) -> str | None:
    """The split that a person calls so: train, val or test; None for any other name."""
    word = re.sub(r"[^a-z]", "", name.casefold())
    word = re.sub(r"^(?:images|data|set|split|my)|(?:images|data|dataset|set|split|ing)$", "", word)
    word = re.sub(r"(?:data|images|set|ing)$", "", word)
    return LIKE_SPLITS.get(word)


def _refuse_like_splits(folder: Path, names: Iterable[str]) -> None:
    """Folders that are splits in other words would be taken for classes, or for texts to train from."""
    alike = {name: split for name in sorted(names) if (split := split_like(name))}
    if len(set(alike.values())) > 1:
        there = ", ".join(f"{name} (as {split})" for name, split in alike.items())
        raise DataError(f"{folder}: {there}: folders of splits are called {', '.join(SPLITS)}; rename them")


def each(function: Callable[[Path], Result], paths: Sequence[Path]) -> list[Result]:
    """What the function gives for each path, on every processor; the first error in their order is raised."""

    def some(start: int) -> list[Result]:
        return [function(path) for path in paths[start : start + TOGETHER]]

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # not on macOS
    with ThreadPoolExecutor(cpus) as pool:
        return [result for results in pool.map(some, range(0, len(paths), TOGETHER)) for result in results]
