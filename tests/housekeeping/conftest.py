"""Fixtures and helpers for the tests of housekeeping: a run in the store, and cleaning it."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import chdir, suppress
from pathlib import Path

from tests.support.project import Project
from tests.support.stored import _finished, _killed, finished, killed, prepared, warm
from workflow_lib import config
from workflow_lib.housekeeping import cleaning

__all__ = ["warm", "prepared", "_killed", "killed", "_finished", "finished"]

LONG_AGO = time.time() - 30 * 86400


def listed(project: Project) -> dict[str, str]:
    """Return the reason of each removal by the item's path in the store."""
    work = project.folder / "work"
    items = cleaning.removable(work, project.folder / "results")
    assert all(item.bytes == size_of(item.path) for item in items)
    return {str(item.path.relative_to(work)): item.why for item in items}


def clean(project: Project) -> None:
    """Remove everything that is removable."""
    for item, why in cleaning.clean(cleaning.removable(project.folder / "work", project.folder / "results")):
        assert why is None, (item, why)


def size_of(path: Path) -> int:
    return sum(file.lstat().st_size for file in (path, *path.rglob("*")) if file.is_symlink() or file.is_file())


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return the content of every file below the folder by relative path; None for folders and links."""
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() and not p.is_symlink() else None for p in paths}


def rest(path: Path) -> None:
    """Set all modification times to a month ago."""
    for file in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):  # temporary files of a save that has just finished
            os.utime(file, (LONG_AGO, LONG_AGO), follow_symlinks=False)


def forget(project: Project) -> Project:
    """Remove all results and set all modification times in the store to a month ago."""
    shutil.rmtree(project.folder / "results")
    rest(project.folder / "work")
    return project


def run_of(project: Project) -> str:
    return str(project.workspace.relative_to(project.folder / "work"))


def data_of(project: Project) -> Path:
    (store,) = (project.folder / "work" / "data").glob("*")
    return store


def load(project: Project) -> config.Experiment:
    """The project's experiment."""
    with chdir(project.folder):
        return config.load([Path("experiment.yaml")])
