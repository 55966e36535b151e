"""The runs and data that a plan, a result or a study of any clone names."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workflow_lib.errors import UserError
from workflow_lib.files import UNREADABLE, read_json
from workflow_lib.results import layout as results_layout
from workflow_lib.store import results_folders

SHARE = 10  # rereading the results takes at most a tenth of the time


class Needed:
    """The needed runs, each with the experiments that name it, and the needed folders of data.

    Reads the results again on queries. Raises UserError if a result cannot be read, since its needs are then unknown.
    """

    def __init__(self, work: Path, results: Path) -> None:
        self.work, self._results = work, results
        self.runs: dict[str, set[str]] = {}
        self.stores: set[str] = set()
        self._took_s = 0.0
        self._read()
        # forces a read before the first removal, since results may be written during the listing
        self._read_at = -math.inf

    def needs_run(self, digest: str) -> bool:
        """Return True if a result names the run; results written during the clean count, too."""
        if time.monotonic() - self._read_at > SHARE * self._took_s:
            self._read()
        return digest in self.runs

    def needs_data(self, store: str) -> bool:
        """Return True if a manifest in the results names the folder of data."""
        self._read()
        return store in self.stores

    def has_results(self, experiment: str) -> bool:
        """Return True if any clone has results of the experiment."""
        return any((results / experiment).exists() for results in self._folders)

    def projects(self) -> list[Path]:
        """Return the folders of all clones that use the store."""
        return [results.absolute().parent for results in {self._results, *self._folders}]

    def _read(self) -> None:
        self._read_at = time.monotonic()
        self._folders = results_folders.list_folders(self.work, self._results)
        runs: dict[str, set[str]] = {}
        stores: set[str] = set()
        for results in self._folders:
            trainings = results_layout.all_trainings(results)
            for path in (*results_layout.all_plans(results), *trainings, *results_layout.all_pointers(results)):
                for digest in _names_in_file(path, _digests):
                    runs.setdefault(digest, set()).add(path.relative_to(results).parts[0])
            for path in results_layout.all_manifests(results):
                stores.update(_names_in_file(path, lambda manifest: [manifest["store"]]))
        self.runs, self.stores, self._took_s = runs, stores, time.monotonic() - self._read_at


def _names_in_file(path: Path, names: Callable[[Any], list[str]]) -> list[str]:
    """Return the names in the file; none if Snakemake has just removed it to regenerate it."""
    try:
        return names(read_json(path))
    except FileNotFoundError:
        return []
    except UNREADABLE as error:
        raise UserError(
            f"{path} cannot be read ({error}), so its needs are unknown, and nothing was removed. "
            f"Delete or regenerate the file"
        ) from error


def _digests(content: Mapping[str, Any]) -> list[str]:
    """Return the digests of the runs that a plan, a result or a file of a study names."""
    if "runs" in content:
        return [run["digest"] for run in (*content["runs"], *content.get("trained_first", []))]
    return [content["digest"] if "digest" in content else content["run"]["digest"]]
