"""Fixtures of a run in the store, and the operations of a clean on it."""

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
    """What would be removed, by its path in the store, and why."""
    work = project.folder / "work"
    items = cleaning.removable(work, project.folder / "results")
    assert all(item.bytes == size_of(item.path) for item in items)
    return {str(item.path.relative_to(work)): item.why for item in items}


def clean(project: Project) -> None:
    """What is listed is removed."""
    for item, why in cleaning.clean(cleaning.removable(project.folder / "work", project.folder / "results")):
        assert why is None, (item, why)


def size_of(path: Path) -> int:
    return sum(one.lstat().st_size for one in (path, *path.rglob("*")) if one.is_symlink() or one.is_file())


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below the folder, with the content of the files."""
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() and not p.is_symlink() else None for p in paths}


def rest(path: Path) -> None:
    """Nothing was written there for a month."""
    for one in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):  # of a save that a training has just finished
            os.utime(one, (LONG_AGO, LONG_AGO), follow_symlinks=False)


def forget(project: Project) -> Project:
    """No result names the run or its data any more, and nothing happened in the store for a month."""
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
