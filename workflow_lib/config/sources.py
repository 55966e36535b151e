"""Runs whose weights another run uses, named by their id, or by an experiment file that stands for its only run.

The settings of runs that a file stands for are kept for this process, until they are frozen.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError

from workflow_lib.errors import ConfigError, EverstepError
from workflow_lib.plugins.section import project_path
from workflow_lib.text import slug

if TYPE_CHECKING:
    from workflow_lib.config.run import RunConfig

RUN = re.compile(r"[A-Za-z0-9._-]+-([0-9a-f]{12})")

_opened: list[Path] = []  # files that are being read, each because of the one before
_known: dict[str, RunConfig] = {}


def resolved(value: str, root: Path | None) -> str:
    """Return the id of the run that a setting names, or else the path of its file or folder, relative to the project.

    A mistake in an experiment file becomes an error of settings.
    """
    if is_run(value):
        return value
    path = project_path(Path(value), root)
    if path.suffix not in (".yaml", ".yml"):
        return str(path)
    try:
        return only_run((root or Path()) / path)
    except EverstepError as error:
        raise PydanticCustomError("plugin", "{message}", {"message": str(error)}) from error


def is_run(value: str | None) -> bool:
    """Return True if the value is the id of a run."""
    return value is not None and RUN.fullmatch(value) is not None


def without_name(value: Any) -> Any:
    """Return the digest in place of the id of a run, which contains an experiment's name; other values as they are."""
    run = RUN.fullmatch(value) if isinstance(value, str) else None
    return value if run is None else run[1]


def only_run(path: Path) -> str:
    """Return the id of the only run of an experiment file, `<experiment>-<12 hex>`.

    Raises ConfigError if the file is not valid, has several runs, or names itself by way of other files.
    """
    from workflow_lib.config.compose import shown
    from workflow_lib.config.consistency import is_swept
    from workflow_lib.config.identity import digest, identity
    from workflow_lib.config.loading import load
    from workflow_lib.config.run import RunConfig

    path = path.resolve()
    if path in _opened:
        chain = " -> ".join(map(shown, (*_opened[_opened.index(path) :], path)))
        raise ConfigError(f"the experiments start from each other: {chain}")
    _opened.append(path)
    try:
        experiment = load([path])
    finally:
        _opened.pop()
    if experiment.tune is not None or is_swept(experiment.sweep):
        tuned = f"results/{slug(experiment.name)}/runs/tuned/model.safetensors"
        kind, instead = (
            ("study", f"the weights of its best trial, which the study writes to {tuned}")
            if experiment.tune is not None
            else ("sweep", f"the id of a run (`everstep plan {shown(path)}` lists them)")
        )
        raise ConfigError(f"{shown(path)} has a {kind}, so it is not one run; give {instead}")
    settings = {name: getattr(experiment, name) for name in RunConfig.model_fields if name != "stages"}
    run = RunConfig(**settings)
    name = f"{slug(experiment.name)}-{digest(identity(run), 'run')[:12]}"
    _known[name] = run
    return name


def known(run: str) -> RunConfig | None:
    """Return the settings of a run whose experiment file this process has read, by its id."""
    return _known.get(run)
