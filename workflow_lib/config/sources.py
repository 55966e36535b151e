"""Experiment files that other experiments name, because a run of theirs starts from its weights.

Such a file stands for its only run. The settings of these runs are kept for this process, until they are frozen.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib.errors import ConfigError
from workflow_lib.text import slug

if TYPE_CHECKING:
    from workflow_lib.config.run import RunConfig

_opened: list[Path] = []  # files that are being read, each because of the one before
_known: dict[str, RunConfig] = {}


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
        kind = "study" if experiment.tune else "sweep"
        raise ConfigError(
            f"{shown(path)} has a {kind}, so it is not one run; give the id of a run (`everstep plan "
            f"{shown(path)}` lists them) or the file of its weights"
        )
    settings = {name: getattr(experiment, name) for name in RunConfig.model_fields if name != "stages"}
    run = RunConfig(**settings)
    name = f"{slug(experiment.name)}-{digest(identity(run), 'run')[:12]}"
    _known[name] = run
    return name


def known(run: str) -> RunConfig | None:
    """Return the settings of a run whose experiment file this process has read, by its id."""
    return _known.get(run)
