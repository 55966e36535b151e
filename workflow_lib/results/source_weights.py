"""The trained weights of the run that another run starts from. The pipeline trains it in the same experiment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib.errors import ConfigError
from workflow_lib.results import layout as results_layout
from workflow_lib.results.statements import read_training

if TYPE_CHECKING:
    from workflow_lib.plan import RunConfig


def find(run: RunConfig, results: Path, experiment: str | None = None) -> Path | None:
    """Return the weights of the run's source in the experiment, or else the newest in any; None if there are none."""
    if (source := run.model.init.run) is None:
        return None
    found = [path for path in results_layout.all_trainings(results) if path.parent.name[-12:] == source[-12:]]
    own = [path for path in found if path.parents[2].name == experiment]
    newest = max(own or found, key=lambda path: path.stat().st_mtime, default=None)
    return newest.with_name(results_layout.MODEL) if newest is not None else None


def digest(run: RunConfig, results: Path, experiment: str | None = None) -> str | None:
    """Return the digest of the weights that `find` finds."""
    path = find(run, results, experiment)
    return None if path is None else digest_of(path)


def digest_of(weights: Path) -> str | None:
    """Return the digest of trained weights by their statement; None if their training diverged."""
    statement = read_training(weights.with_name(results_layout.TRAIN))
    return None if "state" in statement else statement["model"]


def required(run: RunConfig, results: Path, experiment: str) -> Path | None:
    """Return the weights of the run's source, or None if it starts from no run.

    Raises ConfigError if they are missing.
    """
    path = find(run, results, experiment)
    if path is None and run.model.init.run is not None:
        raise ConfigError(
            f"model.init.from: {run.model.init.run} is not trained; the pipeline trains it first: start it with "
            f"`snakemake`"
        )
    return path
