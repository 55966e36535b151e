"""Ownership of results by an experiment file, so that another file with the same `name:` does not overwrite them.

results/<name>/experiment.json    the files and settings of the command line that last started the pipeline

A file is identified by its path, so it may be edited. A copy with the same content counts as the same file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from workflow_lib import files
from workflow_lib.config import compose, is_frozen
from workflow_lib.errors import ConfigError
from workflow_lib.results import layout as results_layout


@dataclass(frozen=True)
class Claim:
    """The experiment files and settings of a command line; relative paths are relative to `project`."""

    project: Path
    files: tuple[Path, ...]
    settings: tuple[str, ...]

    def values(self, settings: Sequence[str] = ()) -> dict[str, Any] | None:
        """Return the merged content of the files and these settings; None if a file cannot be read."""
        try:
            sources = [*map(compose.read, self.files), *compose.overrides(settings)]
            return reduce(compose.merge, sources).values
        except ConfigError:
            return None

    def is_same(self, other: Claim) -> bool:
        """Return True if both claims name the same files on the disk, even by different paths."""
        try:
            return len(self.files) == len(other.files) and all(map(os.path.samefile, self.files, other.files))
        except OSError:  # a parent folder is not readable
            return False

    def shown(self) -> str:
        """Return the paths of the files as text, relative to the current folder if they are below it."""
        return " with ".join(map(compose.shown, self.files))


def claim_of(paths: Sequence[Path], settings: Sequence[str]) -> Claim:
    """Return the claim of a command line."""
    project = (compose.project_root() or Path.cwd()).resolve()
    return Claim(project, tuple(path.resolve() for path in paths), tuple(settings))


def check(results: Path, name: str, claim: Claim) -> str | None:
    """Check that the claim may use the results of the name; return a message if it takes them over, else None.

    Raises ConfigError if they belong to another file that exists, has other content and still has this name.
    """
    if any(map(is_frozen, claim.files)):  # frozen from the file that owned the results at that time
        return None
    folder, owner = results / name, _owner(results / name, claim)
    if owner is None:
        return None
    if not all(map(_exists, owner.files)):
        return f"{folder} was made from {owner.shown()}, which is gone; it now belongs to {claim.shown()}"
    if owner.is_same(claim):
        return None
    values = owner.values()
    if values is not None and values == claim.values():
        return None
    current = owner.values(owner.settings)
    if current is not None and current.get("name") != name:
        return f"{folder} was made from {owner.shown()}, which now has another name; it now belongs to {claim.shown()}"
    raise ConfigError(
        f"{claim.shown()}: name: {name}: {compose.shown(folder)} belongs to {owner.shown()}, another file with this "
        f"name; its results would be overwritten. Nothing was changed. Write another `name:` in one of the two files. "
        f"To use these results for {claim.shown()}, delete {compose.shown(results_layout.owner_file(folder))}"
    )


def acquire(results: Path, name: str, claim: Claim) -> str | None:
    """Record that the results of the name belong to the claim's files; return the message of `check`."""
    message = check(results, name, claim)
    if any(map(is_frozen, claim.files)):
        return None
    owner = _owner(results / name, claim)
    if owner is None or message is not None or owner.is_same(claim):
        # relative paths stay valid if the project is moved
        paths = [
            path.relative_to(claim.project) if path.is_relative_to(claim.project) else path for path in claim.files
        ]
        record = {"project": str(claim.project), "files": [*map(str, paths)], "set": list(claim.settings)}
        files.write_json(
            results_layout.owner_file(results / name), {"results": str((results / name).resolve()), **record}
        )
    return message


def _owner(folder: Path, claim: Claim) -> Claim | None:
    """Return the recorded owner of a folder of results, or None.

    If the folder is no longer at its recorded path, it was copied or moved (or is mounted elsewhere): its files are
    then looked up in the project of the claim.
    """
    if not (results_layout.owner_file(folder)).exists():
        return None
    record = files.read_json(results_layout.owner_file(folder), "results", "project", "files", "set")
    project = Path(record["project"]) if record["results"] == str(folder.resolve()) else claim.project
    return Claim(project, tuple(project / path for path in record["files"]), tuple(record["set"]))


def _exists(path: Path) -> bool:
    """Return False only if the file certainly does not exist."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
