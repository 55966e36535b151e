"""Submission of a pipeline in a job of its own: it runs this experiment, code, rules and profile, as they are now."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workflow_lib import config, notify, plan, snakefile
from workflow_lib.errors import EverstepError
from workflow_lib.results import claims, layout
from workflow_lib.store import code_snapshot
from workflow_lib.store.layout import WORK

DEFAULT = Path("config") / "config.yaml"
SNAKEFILES = (Path("Snakefile"), Path("workflow") / "Snakefile")


@dataclass(frozen=True)
class Submission:
    """Copies that no edit changes; without a snapshot (`code` is None) the project itself."""

    name: str  # of the experiment
    experiment: Path  # frozen
    profile: Path
    code: Path | None

    def command(self) -> list[str]:
        """Return the command of `everstep` that runs it."""
        return ["run", str(self.experiment), "--profile", str(self.profile)]


def freeze(path: Path | None, settings: Sequence[str], profile: Path) -> tuple[Submission, list[str]]:
    """Freeze the experiment of a file and settings, and the code of its project; return both, and lines for the user.

    The results then belong to the file. Raises UserError for a mistake in the file, or a file that it names.
    """
    paths = [path or DEFAULT]
    experiment = config.load(paths, settings)
    if experiment.notify is not None:
        notify.check_environment(experiment.notify, os.environ)
    runs = {run.id: run for run in plan.expand(experiment)}
    first = plan.trained_first(plan.all_configs(experiment, runs.values()), runs, WORK)
    configs = plan.all_configs(experiment, [*runs.values(), *first.values()])
    snakefile.check_named_files([*(run.data for run in configs), *(run.model for run in configs)])
    said = claims.acquire(layout.RESULTS, experiment.name, claims.claim_of(paths, settings))
    frozen = plan.freeze_experiment(experiment, WORK).absolute()
    lines = [said] if said else []
    try:
        code = snakefile.take_snapshot(configs, WORK, [profile.absolute()])
    except (EverstepError, OSError) as error:
        return Submission(experiment.name, frozen, profile, None), [*lines, f"the job runs the project itself: {error}"]
    if code is None:
        return Submission(experiment.name, frozen, profile, None), lines
    return Submission(experiment.name, frozen, code_snapshot.copied(code, profile, Path.cwd()) or profile, code), lines


def submitted_rules() -> Path | None:
    """Return the Snakefile that this pipeline was submitted with; None if it has no snapshot."""
    if (code := code_snapshot.submitted()) is None:
        return None
    found = (code_snapshot.copied(code, place, Path.cwd()) for place in SNAKEFILES)
    return next((path for path in found if path is not None), None)
