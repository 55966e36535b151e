"""The runs and data that results of any clone need: those that a plan, a result or a study names."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workflow_lib.errors import UserError
from workflow_lib.files import UNREADABLE, read_json
from workflow_lib.store import results_folders

PATTERNS = ("plan.json", "runs/*/train.json", "tune/*/suggest-*.json", "tune/*/best.json", "data/*.json")
SHARE = 10  # reading results again takes at most a tenth of the time, however many there are


class Needed:
    """The needed runs, each with the experiments that name it, and the needed folders of data; updated when asked.

    Raises UserError if a result cannot be read, since what it needs is then unknown.
    """

    def __init__(self, work: Path, results: Path) -> None:
        self.work, self._results = work, results
        self.runs: dict[str, set[str]] = {}
        self.stores: set[str] = set()
        self._took_s = 0.0
        self._read()
        self._read_at = -math.inf  # what came after this, the listing, is read before anything is removed

    def needs_run(self, digest: str) -> bool:
        """Return True if a result names the run; results that were just written count."""
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

    def _read(self) -> None:
        self._read_at = time.monotonic()
        self._folders = results_folders.results_of_all(self.work, self._results)
        runs: dict[str, set[str]] = {}
        stores = set()
        for results in self._folders:
            for pattern in PATTERNS:
                for path in results.glob(f"*/{pattern}"):
                    try:
                        content = read_json(path)
                        if pattern == "data/*.json":
                            stores.add(content["store"])
                        else:
                            for digest in _digests(content):
                                runs.setdefault(digest, set()).add(path.relative_to(results).parts[0])
                    except FileNotFoundError:
                        continue  # Snakemake is making it again, or it was deleted
                    except UNREADABLE as error:
                        raise UserError(
                            f"{path} cannot be read ({error}), so what it needs is unknown, and nothing was removed. "
                            f"Delete the file, or make it again"
                        ) from error
        self.runs, self.stores, self._took_s = runs, stores, time.monotonic() - self._read_at


def _digests(content: Mapping[str, Any]) -> list[str]:
    """Return the digests of the runs that a plan, a result or a file of a study names."""
    if "runs" in content:
        return [run["digest"] for run in content["runs"]]
    return [content["digest"] if "digest" in content else content["run"]["digest"]]
