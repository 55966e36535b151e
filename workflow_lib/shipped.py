"""The files of the pipeline: Snakefile, rules/, profiles/, example experiments in config/, and constraints.txt."""

import shlex
from pathlib import Path

_PACKAGED = Path(__file__).parent / "pipeline"

# in an installed package a part of it; in a clone, the folder beside it
FOLDER = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1]
SNAKEFILE = str(FOLDER / "Snakefile")


def how_to_install(extra: str) -> str:
    """Return the command that installs the packages of an extra, in the tested versions, beside this package."""
    return f"pip install -c {shlex.quote(str(FOLDER / 'constraints.txt'))} 'everstep[{extra}]'"
