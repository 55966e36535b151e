"""Renamed settings: experiment files may still use the old name; digests and stored files always do.

In memory, a setting has its current name. Names of runs, files in `work/` and plans keep the old one, so that a
rename in Everstep changes no digest and no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from workflow_lib.config.annotations import sections_of
from workflow_lib.config.experiment import Experiment
from workflow_lib.config.yaml import KeyPath, Origins, dotted, paths
from workflow_lib.errors import ConfigError
from workflow_lib.plugins.section import stored_name

LAST_VERSION = "0.2"  # the last version that reads old names in experiment files
# Mappings of dotted names, which are settings too, and the length of the key path before the name.
POINTS = {("sweep", "grid"): 2, ("sweep", "zip"): 2, ("sweep", "list"): 3, ("sweep", "exclude"): 3}
POINTS |= {("tune", "space"): 2, ("tune", "set"): 2}


@cache
def current_names() -> dict[str, str]:
    """Return the current dotted name of each renamed setting, by its old one."""
    found = {}
    for section, field in Experiment.model_fields.items():
        for variant in sections_of(field.annotation):
            for name in variant.model_fields:
                if (old := stored_name(variant, name)) != name:
                    found[f"{section}.{old}"] = f"{section}.{name}"
    return found


@cache
def _stored_names() -> dict[str, str]:
    return {new: old for old, new in current_names().items()}


def with_current_names(values: Any) -> Any:
    """Return the settings of an experiment, a run or a point of a sweep or study with their current names."""
    return _rename(values, current_names())


def with_stored_names(values: Any) -> Any:
    """Return the same settings with the names that stored files and digests have."""
    return _rename(values, _stored_names())


def _rename(values: Any, names: Mapping[str, str], path: KeyPath = ()) -> Any:
    if isinstance(values, list):
        return [_rename(item, names, (*path, index)) for index, item in enumerate(values)]
    if not isinstance(values, dict):
        return values
    return {_key((*path, key), names): _rename(item, names, (*path, key)) for key, item in values.items()}


def _key(path: KeyPath, names: Mapping[str, str]) -> Any:
    """Return the last key of the path, renamed if it, or the name that ends with it, is in `names`."""
    start = POINTS.get((str(path[0]), str(path[1])), 0) if len(path) > 2 else 0
    name = ".".join(map(str, path[start:]))
    parent = name.removesuffix(str(path[-1]))
    return names.get(name, name).removeprefix(parent) if name in names else path[-1]


def read_old_names(values: dict[str, Any], origins: Origins) -> tuple[dict[str, Any], Origins, tuple[str, ...]]:
    """Return the values and origins of one file with current names, and a message for each old name in it.

    Raises ConfigError if a setting has both of its names.
    """
    names, found = current_names(), set(paths(values))
    moved = {path: (*path[:-1], _key(path, names)) for path in found if path and _key(path, names) != path[-1]}
    if not moved:
        return values, origins, ()
    messages = []
    for old, new in sorted(moved.items(), key=str):
        place = f"{origin}: " if (origin := origins.of(old)) else ""
        if new in found:
            raise ConfigError(f"{place}{dotted(old)} is the old name of {dotted(new)}, which is set too; keep that one")
        messages.append(
            f"{place}{dotted(old)} is now called {dotted(new)}; version {LAST_VERSION} is the last one that reads the "
            f"old name"
        )
    entries = {_current_path(path, names): origin for path, origin in origins.entries.items()}
    return with_current_names(values), Origins(entries), tuple(messages)


def _current_path(path: KeyPath, names: Mapping[str, str]) -> KeyPath:
    return tuple(_key(path[: length + 1], names) for length in range(len(path)))
