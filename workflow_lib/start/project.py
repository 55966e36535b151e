"""A new project: an experiment file and the Snakefile that runs it with the installed pipeline."""

from __future__ import annotations

from pathlib import Path

from workflow_lib.errors import UserError
from workflow_lib.files import write_atomic
from workflow_lib.start.guess import Guess
from workflow_lib.start.written import DIGITS, first_experiment

SNAKEFILE = """\
# The pipeline of Everstep, as it is installed; rules of your own may follow. Run it with: everstep run
from workflow_lib import shipped


module everstep:
    snakefile:
        shipped.SNAKEFILE


use rule * from everstep


onstart:
    everstep.onstart()


onsuccess:
    everstep.onsuccess()


onerror:
    everstep.onerror()
"""
IGNORED = "work/\nresults/\nlogs/\nbenchmarks/\n.snakemake/\n"


def new_project(folder: Path, guess: Guess = DIGITS) -> list[Path]:
    """Write a project into a folder that is new or empty, and return its files.

    Raises UserError if there is something in the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not an empty folder; give a new name")
    texts = {
        "Snakefile": SNAKEFILE,
        "config/config.yaml": first_experiment(folder.absolute().name, guess),
        ".gitignore": IGNORED,
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, text.encode())
    return [folder / name for name in texts]
