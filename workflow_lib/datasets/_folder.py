"""The files of a folder, in the same order on every machine: links are followed, hidden files are ignored."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from workflow_lib.data import SPLITS
from workflow_lib.errors import DataError
from workflow_lib.text import count

LIKE_SPLITS = {
    **dict.fromkeys(("train", "tr", "learn", "fit"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "validat", "dev", "development", "eval"), "val"),
    **dict.fromkeys(("test", "tst", "holdout", "heldout"), "test"),
}
HIDDEN = ("Thumbs.db", "desktop.ini", "__MACOSX")  # of Windows, and of zip files of macOS; others begin with a dot
NAMED = 10  # files that cannot be used, in a message
TASK_FILES = 64  # for one thread, so that small files do not cost more in scheduling than in reading

Result = TypeVar("Result")


def entries(folder: Path) -> list[Path]:
    """Return the files and folders in the folder that are not hidden, sorted by name."""
    found = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in HIDDEN)
    for path in found:
        try:
            path.name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{str(path)!r}: its name is not UTF-8; rename it") from error
    return found


def name_below(path: Path, base: Path) -> str:
    """Return the name of a file of a folder, with those of the folders between; of a single file, its own name."""
    return path.name if path == base else path.relative_to(base).as_posix()


def files_below(folder: Path, inside: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield every file in the folder, at any depth. Raises DataError for a broken link or a link to a parent folder."""
    real = folder.resolve()
    if real in inside:
        raise DataError(f"{folder}: a link to a folder that contains it; remove it")
    for path in entries(folder):
        if path.is_dir():
            yield from files_below(path, (*inside, real))
        elif path.is_file():
            yield path
        else:
            what = "a broken link" if path.is_symlink() else "neither a file nor a folder"
            raise DataError(f"{path}: is {what}; remove it")


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders train, val and test that exist; if there is none of them, the folder itself as train."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise DataError(f"{folder}: {what} (data.params.path)")
    names = {path.name for path in entries(folder) if path.is_dir()}
    if not names & set(SPLITS):
        _check_split_names(folder, names)
        return {"train": folder}
    if others := sorted(names - set(SPLITS)):
        raise DataError(
            f"{folder / others[0]}: is not a split, but beside folders of splits; allowed: {', '.join(SPLITS)}; move it"
        )
    if "train" not in names:
        raise DataError(f"{folder}: has a folder {min(names)}, but no folder train")
    return {split: folder / split for split in SPLITS if split in names}


def class_folders(folder: Path, pattern: str = "*") -> dict[str, list[Path]]:
    """Return the files of each class that match the pattern, by the name of the class's folder.

    Raises DataError for a file beside the folders, and for a folder without a matching file.
    """
    found = {}
    for path in entries(folder):
        if not path.is_dir():
            raise DataError(f"{path}: is beside the folders of the classes; move it into the folder of its class")
        found[path.name] = [file for file in files_below(path, (folder.resolve(),)) if file.match(pattern)]
        if not found[path.name]:
            raise DataError(f"{path}: no file of this class matches `{pattern}`; fill the folder, or remove it")
    return found


def split_like(name: str) -> str | None:
    """Return train, val or test for a usual name of that split, such as `Training-Data`; None for any other name."""
    word = re.sub(r"[^a-z]", "", name.casefold())
    word = re.sub(r"^(?:images|data|set|split|my)|(?:images|data|dataset|set|split|ing)$", "", word)
    word = re.sub(r"(?:data|images|set|ing)$", "", word)
    return LIKE_SPLITS.get(word)


def _check_split_names(folder: Path, names: Iterable[str]) -> None:
    """Reject folders of splits with other names: they would be read as classes, or as texts to train on."""
    alike = {name: split for name in sorted(names) if (split := split_like(name))}
    if len(set(alike.values())) > 1:
        there = ", ".join(f"{name} (as {split})" for name, split in alike.items())
        raise DataError(f"{folder}: {there} look like splits; rename them to {', '.join(SPLITS)}")


def map_files(function: Callable[[Path], Result], paths: Sequence[Path]) -> list[Result]:
    """Return the results of the function for the paths, computed on all processors.

    Raises DataError if the function does for some of them, with the first message and the names of the others.
    """

    def result_of(path: Path) -> Result | DataError:
        try:
            return function(path)
        except DataError as error:
            return error

    def results_from(start: int) -> list[Result | DataError]:
        return [result_of(path) for path in paths[start : start + TASK_FILES]]

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # not on macOS
    with ThreadPoolExecutor(cpus) as pool:
        found = [result for results in pool.map(results_from, range(0, len(paths), TASK_FILES)) for result in results]
    bad = {str(path): result for path, result in zip(paths, found, strict=True) if isinstance(result, DataError)}
    if bad:
        raise with_others(bad, len(paths))
    return [result for result in found if not isinstance(result, DataError)]


def with_others(bad: Mapping[str, DataError], files: int) -> DataError:
    """Return the first error; if there are more, with their number of all files, and with the names of up to NAMED."""
    first, *others = bad
    if not others:
        return bad[first]
    base = os.path.commonpath(bad)
    names = ", ".join(os.path.relpath(name, base or ".") for name in others[: NAMED - 1])
    more = ", ..." if len(others) >= NAMED else ""
    where = f" in {base}" if base else ""
    return DataError(f"{bad[first]}; {len(bad)} of {count(files, 'file')} cannot be used, also {names}{more}{where}")
