"""Projects whose pipeline may start more jobs, since its Snakemake runs or it has jobs in a queue."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from workflow_lib.slurm import queue
from workflow_lib.store import controllers


class Waiting:
    """Asks the processes of a project, and SLURM once, when something old would be removed."""

    def is_any(self, projects: Iterable[Path]) -> bool:
        """Return True if the pipeline of one of these folders may start more jobs; True if SLURM does not answer."""
        return any(
            controllers.is_any_running(project / ".snakemake")
            or self._queued is None
            or project.resolve() in self._queued
            for project in projects
        )

    @cached_property
    def _queued(self) -> set[Path] | None:
        found = queue.folders()
        return None if found is None else {path.resolve() for path in found}
