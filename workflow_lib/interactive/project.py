"""The folder of the project: all paths are relative to it, so it must still be the working directory."""

from __future__ import annotations

from pathlib import Path

from workflow_lib.errors import ConfigError


def check(folder: Path, name: str) -> None:
    """Raise ConfigError if the working directory is not this folder, in which the object of this name was made."""
    if Path.cwd() != folder:
        raise ConfigError(
            f"the working directory is {Path.cwd()}, but {name} was loaded in {folder}: change back with os.chdir, or "
            "load it again"
        )
