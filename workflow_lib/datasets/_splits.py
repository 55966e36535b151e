"""Files of the splits of a folder: by sub-folders or by the first word of the names, as Hugging Face and nanoGPT do."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from workflow_lib.data import SPLITS
from workflow_lib.datasets._folder import entries, files_below
from workflow_lib.errors import DataError

LOOKED_AT = 64  # files of a split whose headers are read before the data is prepared
NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def files_of_splits(
    path: Path, suffixes: Collection[str], rejected: Mapping[str, str] | None = None
) -> dict[str, list[Path]]:
    """Return the files with these suffixes of each split, sorted by path; a file or folder without splits is train.

    Raises DataError if there is no such file, if some but not all of the files name a split, or for a file with the
    end of a name in `rejected`, which has the reason.
    """
    allowed = ", ".join(sorted(suffixes))
    if path.is_file():
        if path.suffix not in suffixes:
            raise DataError(f"{path}: allowed: {allowed}, or a folder of such files (data.params.path)")
        return {"train": [path]}
    if not path.is_dir():
        raise DataError(f"{path}: there is no such file or folder (data.params.path)")
    found: dict[str, list[Path]] = {}
    folders = {folder: NAMES.get(folder.name) for folder in entries(path) if folder.is_dir()}
    if any(folders.values()):
        for folder, split in folders.items():
            if split is None:
                raise DataError(f"{folder}: is not a split, but beside folders of splits; move it")
            found.setdefault(split, []).extend(_named(files_below(folder), suffixes, rejected or {}))
    else:
        files = _named(files_below(path), suffixes, rejected or {})
        splits = {file: NAMES.get(re.split(r"[-_.]", file.name)[0]) for file in files}
        if any(splits.values()) and (others := [file for file, split in splits.items() if split is None]):
            raise DataError(f"{others[0]}: its name does not begin with train, val or test, as those of other files do")
        for file, split in splits.items():
            found.setdefault(split or "train", []).append(file)
    if "train" not in found:
        raise DataError(f"{path}: has no file of train; allowed: files named {allowed} (data.params.path)")
    if empty := [split for split, files in found.items() if not files]:
        raise DataError(f"{path}: the split {empty[0]} has no file named {allowed}")
    return {split: found[split] for split in SPLITS if split in found}


def _named(files: Iterable[Path], suffixes: Collection[str], rejected: Mapping[str, str]) -> list[Path]:
    """Return the files with these suffixes. Raises DataError for a file that would be overlooked by mistake."""
    found = []
    for file in files:
        if file.suffix in suffixes:
            found.append(file)
        elif file.suffix.lower() in suffixes:
            raise DataError(f"{file}: write `{file.suffix}` in small letters, or move the file")
        elif reason := next((why for end, why in rejected.items() if file.name.lower().endswith(end)), ""):
            raise DataError(f"{file}: {reason}")
    return found


def new_files(path: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Return the file at a path, or the files with these suffixes below it, by name; their splits do not matter.

    Raises DataError if there is none.
    """
    allowed = ", ".join(sorted(suffixes))
    if not path.is_dir():
        if path.suffix not in suffixes:
            raise DataError(f"{path}: allowed: {allowed}, or a folder of such files")
        return {path.name: path}
    found = {file.relative_to(path).as_posix(): file for file in files_below(path) if file.suffix in suffixes}
    if not found:
        raise DataError(f"{path}: has no file to predict for; allowed: files named {allowed}")
    return found
