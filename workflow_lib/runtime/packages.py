"""Versions of installed packages, read once in a process: forks know those that their parent has read."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from importlib.metadata import PackageNotFoundError as PackageNotFoundError

FIELD = "Version: "


@cache
def version(name: str) -> str:
    """Return the version of an installed package. Raises PackageNotFoundError if it is not installed.

    `importlib.metadata` parses the whole description of the package for it, which takes some milliseconds.
    """
    found = metadata.distribution(name)
    header = (found.read_text("METADATA") or "").partition("\n\n")[0]
    values = [line.removeprefix(FIELD) for line in header.splitlines() if line.startswith(FIELD)]
    return values[0].strip() if len(values) == 1 else found.version
