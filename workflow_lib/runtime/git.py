"""The git repository around a folder; every answer is None outside of a repository or without git."""

from __future__ import annotations

import subprocess
from pathlib import Path


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
