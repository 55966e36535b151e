"""The experiment file is the one source of settings: read, merged, checked whole, named by what matters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from workflow_lib import files
from workflow_lib.config import compose
from workflow_lib.config.checks import check
from workflow_lib.config.compose import Source, find_root, merge, project_root, read
from workflow_lib.config.identity import canonical, digest, identity
from workflow_lib.config.parts import Data, Model
from workflow_lib.config.problems import messages
from workflow_lib.config.sections import Experiment
from workflow_lib.config.template import schema, template
from workflow_lib.errors import ConfigError
from workflow_lib.plugins import Section

__all__ = [
    "Data",
    "Experiment",
    "Model",
    "Section",
    "canonical",
    "digest",
    "find_root",
    "identity",
    "load",
    "schema",
    "snapshot",
    "template",
]


def load(paths: Sequence[Path], overrides: Sequence[str] = (), *, root: Path | None = None) -> Experiment:
    """The experiment of the files, later ones on top, then the overrides; a ConfigError has all problems."""
    if not paths:
        raise ConfigError("no experiment file given")
    source = read(Path(paths[0]))
    for path in paths[1:]:
        source = merge(source, read(Path(path)))
    for override in compose.overrides(overrides):
        source = merge(source, override)
    return validate(source, root or project_root())


def validate(source: Source, root: Path | None) -> Experiment:
    """The experiment with these values."""
    try:
        experiment = Experiment.model_validate(source.values, context={"root": root})
    except ValidationError as error:
        raise ConfigError("\n".join(messages(error.errors(), Experiment, source.values, source.origins))) from error
    experiment._origins = source.origins
    if problems := check(experiment, source.origins):
        raise ConfigError("\n".join(problems))
    return experiment


def snapshot(experiment: Experiment, work: Path) -> Path:
    """The file work/experiments/<digest>.json with every setting; `load` gives the experiment back."""
    values = experiment.model_dump(mode="json")
    path = work / "experiments" / f"{digest(values, 'experiment')}.json"
    if not path.exists():
        files.write_json(path, values)
    return path
