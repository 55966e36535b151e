"""Versions of a model: folders that appear whole, under the next number, and are never written again.

    <registry>/<name>/versions/000003/         a version
        version.json                           its statement: digests, metrics, origin
        card.md                                model card, in which people may write
        model.safetensors, model.onnx, train.json, evaluation.json, export.json, predictions.csv, config.json

A folder is filled under a hidden name and renamed to the next number. The rename fails if the number is taken, so of
two processes only one gets it, and the other looks again. Equal content (weights, graph, test samples) is one version.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_lib.errors import StateError, UserError
from workflow_lib.files import (
    file_digest,
    fsync_dir,
    make_dirs,
    names_in,
    naming,
    read_json,
    temporary_name,
    write_signed,
)
from workflow_lib.processes import is_writer_alive, writer_mark

STATEMENT, CARD = "version.json", "card.md"
NUMBER = re.compile(r"\d{6,}")
# unpublished versions and decisions, and the temporary files of decisions
LEFTOVER = re.compile(r"\.{1,2}(version|\d{6,}\.json)\.(?P<mark>[0-9a-f]{20})[0-9a-f]{12}\.tmp(\.[0-9a-f]{32}\.tmp)?")


@dataclass(frozen=True)
class Version:
    """A published version."""

    folder: Path
    number: int
    digest: str  # of its content
    statement: Mapping[str, Any]

    def verify(self, name: str) -> Path:
        """Return the path of a file. Raises StateError if it is not the one that was registered."""
        path = self.folder / name
        if not path.exists() or file_digest(path) != self.statement["files"].get(name):
            raise StateError(f"{path}: damaged or replaced since it was registered. Restore it from a copy")
        return path


def make_shared_dirs(registry: Path, folder: Path) -> None:
    """Create a folder of the registry and its parents, with the permissions of the registry itself."""
    if folder.is_dir():
        return
    if folder == registry:
        make_dirs(folder)
        return
    make_shared_dirs(registry, folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
        share(registry, folder)
        fsync_dir(folder.parent)


def share(registry: Path, path: Path) -> None:
    """Give the path the permissions of the folder of the registry, whatever the umask of this user is.

    Who may read or write the registry is decided by `chmod` of this folder, once for all its users.
    """
    mode = stat.S_IMODE(registry.stat().st_mode)
    path.chmod(mode if path.is_dir() else mode & 0o666)


def versions_dir(registry: Path, name: str) -> Path:
    return registry / name / "versions"


def folder_of(registry: Path, name: str, number: int) -> Path:
    return versions_dir(registry, name) / f"{number:06d}"


def names(registry: Path) -> list[str]:
    """Return the names of the models in the registry, sorted."""
    return [name for name in names_in(registry) if versions_dir(registry, name).is_dir()]


def numbers(registry: Path, name: str) -> list[int]:
    """Return the numbers of the versions of a model, in order."""
    found = names_in(versions_dir(registry, name))
    return sorted(int(number) for number in found if NUMBER.fullmatch(number))


def load(registry: Path, name: str, number: int) -> Version:
    """Return a version. Raises UserError if there is none of this number, and StateError if it is damaged."""
    folder = folder_of(registry, name, number)
    if not folder.is_dir():
        known = numbers(registry, name)
        allowed = f"1 to {known[-1]}" if known == [*range(1, len(known) + 1)] else ", ".join(map(str, known))
        raise UserError(f"{name} has no version {number} in {registry}; allowed: {allowed}" if known else _none(name))
    try:
        statement = read_json(folder / STATEMENT, "digest", "files")
    except (FileNotFoundError, StateError) as error:
        raise StateError(
            f"{folder / STATEMENT} is missing or damaged. Restore it from a copy, or move {folder} away"
        ) from error
    return Version(folder, number, statement["digest"], statement)


def _none(name: str) -> str:
    return f"{name} has no version yet"


def find(registry: Path, name: str, digest: str) -> Version | None:
    """Return the version with this content, if there is one."""
    found = (load(registry, name, number) for number in reversed(numbers(registry, name)))
    return next((version for version in found if version.digest == digest), None)


def publish(
    registry: Path,
    name: str,
    *,
    digest: str,
    files: Mapping[str, Path],
    describe: Callable[[int], tuple[dict[str, Any], str]],
) -> tuple[Version, bool]:
    """Return the version with this content, and True if it was published now.

    `files` are copied under their names; `describe` returns the statement and the card of the version of a number.
    """
    folder = versions_dir(registry, name)
    make_shared_dirs(registry, folder)
    remove_leftovers(folder)
    if (found := find(registry, name, digest)) is not None:
        return found, False
    temporary = temporary_name(folder / "version")
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, temporary, ignore_errors=True)
        temporary.mkdir()
        digests = {own: _copy(source, temporary / own) for own, source in files.items()}
        while (found := find(registry, name, digest)) is None:
            number = max(numbers(registry, name), default=0) + 1
            statement, card = describe(number)
            _write(temporary / CARD, card)
            write_signed(temporary / STATEMENT, {**statement, "name": name, "digest": digest, "files": digests})
            for path in (*temporary.iterdir(), temporary):
                share(registry, path)
            fsync_dir(temporary)
            if _renamed(temporary, folder / f"{number:06d}"):
                undo.pop_all()
                fsync_dir(folder)
                return load(registry, name, number), True
    return found, False


def _renamed(temporary: Path, folder: Path) -> bool:
    """Give the folder its name; return False if another process has taken it."""
    try:
        os.rename(temporary, folder)  # noqa: PTH104 (Path.rename is the same; this one's errors are tested)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _copy(source: Path, target: Path) -> str:
    """Copy a file durably and return the digest of the copy."""
    with source.open("rb") as reader, naming(target), target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        sys.audit("everstep", "fsync", str(target))
        os.fsync(writer.fileno())
    return file_digest(target)


def _write(path: Path, text: str) -> None:
    with naming(path), path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        sys.audit("everstep", "fsync", str(path))
        os.fsync(file.fileno())


def remove_leftovers(folder: Path) -> None:
    """Remove what killed registrations of this machine have left unpublished in the folder."""
    for name in names_in(folder):
        match = LEFTOVER.fullmatch(name)
        if match and match["mark"] != writer_mark() and is_writer_alive(match["mark"]) is False:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):  # of another user
                    path.unlink()
