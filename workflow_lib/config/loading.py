"""From experiment files and overrides to one validated experiment."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workflow_lib.config import compose
from workflow_lib.config.compose import Source, merge, project_root, read
from workflow_lib.config.consistency import check
from workflow_lib.config.experiment import Experiment
from workflow_lib.config.identity import digest
from workflow_lib.config.messages import messages
from workflow_lib.config.renamed import with_stored_names
from workflow_lib.errors import ConfigError, StateError
from workflow_lib.store import layout

logger = logging.getLogger(__name__)


def load(
    paths: Sequence[Path | Mapping[str, Any]], overrides: Sequence[str] = (), *, root: Path | None = None
) -> Experiment:
    """Return the experiment of the files, later ones on top, then the overrides. A mapping stands for a file.

    Raises ConfigError with every problem, one a line, and StateError if a frozen experiment is damaged.
    """
    if not paths:
        raise ConfigError("no experiment file given")
    sources = [compose.read_mapping(path) if isinstance(path, Mapping) else _read(Path(path)) for path in paths]
    source = reduce(merge, [*sources, *compose.overrides(overrides)])
    for message in source.messages:
        logger.warning("%s", message)
    return validate(source, root or project_root())


def _read(path: Path) -> Source:
    source = read(path)
    if not is_frozen(path):
        return source
    if digest(with_stored_names(source.values), "experiment") != path.stem:
        raise StateError(
            f"{path}: damaged: it is not the experiment that was frozen under this name. Start the pipeline again with "
            f"the experiment's own file, which freezes it again"
        )
    return Source(source.values, source.origins)  # without messages: nobody edits a frozen file


def validate(source: Source, root: Path | None) -> Experiment:
    """Return the experiment with these values; raise ConfigError with every problem, one a line."""
    try:
        experiment = Experiment.model_validate(source.values, context={"root": root})
    except ValidationError as error:
        raise ConfigError("\n".join(messages(error.errors(), Experiment, source.values, source.origins))) from error
    experiment._origins = source.origins
    if problems := check(experiment, source.origins):
        raise ConfigError("\n".join(problems))
    return experiment


def is_frozen(path: Path) -> bool:
    """Return True if the path is that of a frozen experiment: named by the digest of its content."""
    return layout.is_experiment_file(path)
