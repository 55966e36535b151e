"""The git repository around a folder; every answer is None outside of a repository or without git."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

SUBMITTED = (
    "EVERSTEP_COMMIT"  # variable of a job that imports a snapshot of the code: the commit, and if it is modified
)


def of_code() -> tuple[str | None, bool | None]:
    """Return the commit of the code that this process runs, and True if a tracked file differed from it.

    A job runs the code of its submission, whatever is checked out meanwhile.
    """
    if given := os.environ.get(SUBMITTED):
        commit_then, was_modified = json.loads(given)
        return commit_then, was_modified
    return commit(Path.cwd()), is_modified(Path.cwd())


def commit(folder: Path) -> str | None:
    """Return the commit that is checked out."""
    return _answer(folder, "rev-parse", "HEAD")


def is_modified(folder: Path) -> bool | None:
    """Return True if a tracked file differs from the commit."""
    changes = _answer(folder, "--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    return None if changes is None else bool(changes)


def _answer(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
