"""The trained weights of the runs that another run uses. The pipeline trains them in the same experiment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import plan
from workflow_lib.errors import ConfigError
from workflow_lib.results import layout as results_layout
from workflow_lib.results.statements import read_training

if TYPE_CHECKING:
    from workflow_lib.plan import RunConfig


def find(run: RunConfig, results: Path, experiment: str | None = None) -> dict[str, Path]:
    """Return the weights of the run's sources by setting: those in the experiment, or else the newest in any.

    Sources that are not trained are left out.
    """
    found = {setting: newest(ref, results, experiment) for setting, ref in plan.sources_of(run).items()}
    return {setting: weights for setting, weights in found.items() if weights is not None}


def newest(source: str, results: Path, experiment: str | None) -> Path | None:
    """Return the trained weights of a run: those in the experiment, or else the newest in any; None without any."""
    found = [path for path in results_layout.all_trainings(results) if path.parent.name[-12:] == source[-12:]]
    own = [path for path in found if path.parents[2].name == experiment]
    statement = max(own or found, key=lambda path: path.stat().st_mtime, default=None)
    return statement.with_name(results_layout.MODEL) if statement is not None else None


def digests(run: RunConfig, results: Path, experiment: str | None = None) -> dict[str, str]:
    """Return the digests of the weights that `find` finds, by their statements; without those that diverged."""
    return digests_of(find(run, results, experiment))


def digests_of(found: dict[str, Path]) -> dict[str, str]:
    """Return the digests of trained weights by setting."""
    statements = {setting: read_training(path.with_name(results_layout.TRAIN)) for setting, path in found.items()}
    return {setting: statement["model"] for setting, statement in statements.items() if "state" not in statement}


def required(run: RunConfig, results: Path, experiment: str) -> dict[str, Path]:
    """Return the weights of all sources of the run by setting. Raises ConfigError if some are missing."""
    found = find(run, results, experiment)
    for setting, ref in plan.sources_of(run).items():
        if setting not in found:
            raise ConfigError(
                f"{setting}: {ref} is not trained; the pipeline trains it first: start it with `snakemake`"
            )
    return found
