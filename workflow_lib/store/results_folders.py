"""The register of clones of the project that share a store, so that none removes runs that another's results need.

work/clones/<digest>.json    the results folder of one clone
"""

from __future__ import annotations

import os
from pathlib import Path

from workflow_lib import files
from workflow_lib.config import digest
from workflow_lib.errors import StateError, UserError
from workflow_lib.store import layout


def register(work: Path, results: Path) -> None:
    """Record in the store that these results may need its content."""
    # a folder beside the store is recorded by its relative path, which stays valid if both are moved together
    store, place = work.resolve(), results.resolve()
    where = os.path.relpath(place, store) if place.parent == store.parent else str(place)
    path = layout.results_folder_file(work, digest(where, "everstep-clone")[:12])
    if not path.exists():
        files.write_json(path, {"results": where})


def list_folders(work: Path, own: Path) -> list[Path]:
    """Return the existing results folders of all clones that use the store, this clone's own first.

    Raises UserError if a clone is missing, since it is then unknown which runs its results need.
    """
    found = {own.resolve(): own}
    for path in layout.results_folder_files(work):
        try:
            results = Path(os.path.normpath(work.resolve() / str(files.read_json(path, "results")["results"])))
        except StateError as error:
            raise UserError(f"{error}. Nothing is removed until then, since a result may need it") from error
        if not results.parent.is_dir():
            raise UserError(
                f"{results}, which may need runs in this store, is missing, so nothing was removed. Mount it; or, if "
                f"that clone no longer exists, delete {path}"
            )
        found.setdefault(results.resolve(), results)
    return [folder for folder in found.values() if folder.is_dir()]
