"""The experiment file that the results of a name belong to, so that another file of the same name overwrites nothing.

results/<name>/experiment.json    the files and settings of the command line that the pipeline was last started with

A file is known by where it is, not by its content: it may be edited. A copy with the same content counts as the file.
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
    """The experiment files and the settings of a command line; `project` is the folder that relative paths start in."""

    project: Path
    files: tuple[Path, ...]
    settings: tuple[str, ...]

    def values(self, settings: Sequence[str] = ()) -> dict[str, Any] | None:
        """Return what the files say; None if they cannot be read."""
        try:
            sources = [*map(compose.read, self.files), *compose.overrides(settings)]
            return reduce(compose.merge, sources).values
        except ConfigError:
            return None

    def is_same(self, other: Claim) -> bool:
        """Return True if the claims name the same files on the disk, by whatever paths."""
        try:
            return len(self.files) == len(other.files) and all(map(os.path.samefile, self.files, other.files))
        except OSError:  # a folder on the way may not be looked into
            return False

    def shown(self) -> str:
        """Return the paths of the files, relative to the current folder where they are below it."""
        return " with ".join(map(compose.shown, self.files))


def of(paths: Sequence[Path], settings: Sequence[str]) -> Claim:
    """Return the claim of a command line."""
    project = (compose.project_root() or Path.cwd()).resolve()
    return Claim(project, tuple(path.resolve() for path in paths), tuple(settings))


def check(results: Path, name: str, claim: Claim) -> str | None:
    """Return None, or the line that says from which file the results of the name are taken over.

    Raises ConfigError if they belong to another file, which exists and has other content.
    """
    if any(map(is_frozen, claim.files)):  # made from the experiment file that the results belonged to then
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
    named = owner.values(owner.settings)
    if named is not None and named.get("name") != name:
        return f"{folder} was made from {owner.shown()}, which has another name now; it now belongs to {claim.shown()}"
    raise ConfigError(
        f"{claim.shown()}: name: {name}: {compose.shown(folder)} belongs to {owner.shown()}, another file with this "
        f"name; its results would be overwritten. Nothing was changed. Write another `name:` in one of the two files. "
        f"If {claim.shown()} is to go on with these results, delete {compose.shown(results_layout.owner_file(folder))}"
    )


def take(results: Path, name: str, claim: Claim) -> str | None:
    """Record that the results of the name belong to the files; return the line of `check`."""
    line = check(results, name, claim)
    if any(map(is_frozen, claim.files)):
        return None
    owner = _owner(results / name, claim)
    if owner is None or line is not None or owner.is_same(claim):
        inside = [
            path.relative_to(claim.project) if path.is_relative_to(claim.project) else path for path in claim.files
        ]
        record = {"project": str(claim.project), "files": [*map(str, inside)], "set": list(claim.settings)}
        files.write_json(
            results_layout.owner_file(results / name), {"results": str((results / name).resolve()), **record}
        )
    return line


def _owner(folder: Path, claim: Claim) -> Claim | None:
    """Return the claim in the folder of results; None if nobody made one.

    Results that were copied or moved, or that this machine has elsewhere, belong to the project of the claim.
    """
    if not (results_layout.owner_file(folder)).exists():
        return None
    record = files.read_json(results_layout.owner_file(folder), "results", "project", "files", "set")
    project = Path(record["project"]) if record["results"] == str(folder.resolve()) else claim.project
    return Claim(project, tuple(project / path for path in record["files"]), tuple(record["set"]))


def _exists(path: Path) -> bool:
    """Return False only if the file is known to be gone."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
