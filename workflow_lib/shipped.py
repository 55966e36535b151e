"""The files of the pipeline: Snakefile, rules/, profiles/ and the example experiments in config/."""

from pathlib import Path

_PACKAGED = Path(__file__).parent / "pipeline"

# in an installed package a part of it; in a clone, the folder beside it
FOLDER = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1]
SNAKEFILE = str(FOLDER / "Snakefile")
