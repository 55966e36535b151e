"""The clones of the project that use one store: each leaves a note there, and no other removes what its results name.

work/clones/<digest>.json    where the results of one clone lie
"""

from __future__ import annotations

import os
from pathlib import Path

from workflow_lib import files
from workflow_lib.config import digest
from workflow_lib.errors import StateError, UserError


def note(work: Path, results: Path) -> None:
    """The store knows that these results may name what lies in it."""
    # A folder beside the store moves with it.
    store, place = work.resolve(), results.resolve()
    where = os.path.relpath(place, store) if place.parent == store.parent else str(place)
    path = work / "clones" / f"{digest(where, 'everstep-clone')[:12]}.json"
    if not path.exists():
        files.write_json(path, {"results": where})


def results_of_all(work: Path, own: Path) -> list[Path]:
    """Return the results folders of every clone that uses the store, the own first; those that exist.

    Raises UserError for a clone that is not there: what its results name is not known.
    """
    found = {own.resolve(): own}
    for path in sorted(work.glob("clones/*.json")):
        try:
            results = Path(os.path.normpath(work.resolve() / str(files.read_json(path, "results")["results"])))
        except StateError as error:
            raise UserError(f"{error}. Until then nothing is removed: a result may need it") from error
        if not results.parent.is_dir():
            raise UserError(
                f"{results}, which may name runs in this store, is not there, so nothing was removed. Mount it; or, if "
                f"that clone is gone for good, delete {path}"
            )
        found.setdefault(results.resolve(), results)
    return [folder for folder in found.values() if folder.is_dir()]
