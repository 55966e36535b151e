"""The experiment file is the one source of settings: read, merged, checked whole, named by what matters."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from workflow_lib import files
from workflow_lib.config import compose
from workflow_lib.config.compose import Source, find_root, merge, project_root, read
from workflow_lib.config.consistency import check
from workflow_lib.config.experiment import Experiment
from workflow_lib.config.identity import canonical, digest, identity
from workflow_lib.config.messages import messages
from workflow_lib.config.run import Data, Model
from workflow_lib.config.template import schema, template
from workflow_lib.errors import ConfigError, StateError
from workflow_lib.plugins import Section

logger = logging.getLogger(__name__)

__all__ = [
    "Data",
    "Experiment",
    "Model",
    "Section",
    "canonical",
    "digest",
    "find_root",
    "identity",
    "is_frozen",
    "load",
    "schema",
    "snapshot",
    "template",
]


def load(paths: Sequence[Path], overrides: Sequence[str] = (), *, root: Path | None = None) -> Experiment:
    """The experiment of the files, later ones on top, then the overrides; a ConfigError has all problems."""
    if not paths:
        raise ConfigError("no experiment file given")
    sources = [read(Path(path)) for path in paths]
    for path, one in zip(paths, sources, strict=True):
        if is_frozen(Path(path)) and digest(one.values, "experiment") != Path(path).stem:
            raise StateError(
                f"{path}: damaged: not the experiment that was frozen under this name. Start the pipeline again with "
                f"the experiment's own file: it is frozen anew"
            )
    source = sources[0]
    for one in sources[1:]:
        source = merge(source, one)
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
    text = files.json_text(values)
    if not path.exists() or path.read_bytes() != text.encode():
        if path.exists():
            logger.warning("%s was damaged, and is written again", path)
        files.write_atomic(path, text)
    return path


def is_frozen(path: Path) -> bool:
    """Return True if the file has the name that `snapshot` gives, the digest of its content."""
    return path.parent.name == "experiments" and re.fullmatch(r"[0-9a-f]{32}\.json", path.name) is not None
