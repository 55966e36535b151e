"""Digests, and readable names that contain them, for runs, data sets and sections of an experiment.

Folders in `work/` and `results/` are named by them, so a change here would train every run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workflow_lib import config
from workflow_lib.config.experiment import Experiment
from workflow_lib.config.identity import canonical
from workflow_lib.config.renamed import with_stored_names
from workflow_lib.config.run import Data, RunConfig
from workflow_lib.plugins import Section
from workflow_lib.text import slug


def run_digest(run: RunConfig) -> str:
    """Return the digest of the run's settings: 32 hex digits."""
    return config.digest(config.identity(run), "run")


def data_settings(run: RunConfig | Experiment) -> dict[str, Any]:
    """Return all settings of the run's data as JSON values, including those that are not part of its identity."""
    return run.data.model_dump(mode="json")


def data_id(run: RunConfig | Experiment | Data) -> str:
    """Return `<data set>-<12 hex>`: equal for runs that share their shards."""
    data = run if isinstance(run, Data) else run.data
    return f"{slug(data.name)}-{config.digest(config.identity(data), 'data')[:12]}"


def run_id(experiment_name: str, swept: Mapping[str, Any], digest: str) -> str:
    """Return `<slug>-<12 hex>`: the slug is a readable text of the experiment's name and the swept values.

    A renamed setting keeps its old name in it, so that the run keeps its folder in `results/`.
    """
    words = [experiment_name, *(_word(key, value) for key, value in with_stored_names(swept).items())]
    return f"{slug('-'.join(words))}-{digest[:12]}"


def _word(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return "-".join(_word(inner, item) for inner, item in value.items())
    if isinstance(value, str):
        return value
    return f"{key.rpartition('.')[2]}{canonical(value)}"


def section_digest(experiment: Experiment, section: str) -> str:
    """Return a digest of the settings of the section that can change its results."""
    value = getattr(experiment, section)
    return config.digest(config.identity(value) if isinstance(value, Section) else value, "section")
