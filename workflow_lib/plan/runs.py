"""A run is one fully resolved training; its digest names it, and what a digest names never changes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from workflow_lib import config
from workflow_lib.config import sweep
from workflow_lib.config.compose import overlay, project_root
from workflow_lib.config.consistency import run_problems
from workflow_lib.config.experiment import Experiment
from workflow_lib.config.identity import canonical, digest_text
from workflow_lib.config.messages import messages, shown
from workflow_lib.config.run import Data, RunConfig
from workflow_lib.config.stages import stages
from workflow_lib.config.yaml import Origins, dotted
from workflow_lib.errors import ConfigError
from workflow_lib.plugins import Section


@dataclass(frozen=True)
class Run:
    """One run of an experiment."""

    id: str
    digest: str
    config: RunConfig
    swept: dict[str, Any]
    data_id: str


def run_digest(run: RunConfig) -> str:
    """The name of the run's settings: 32 hex digits."""
    return config.digest(config.identity(run), "run")


def data_settings(run: RunConfig | Experiment) -> dict[str, Any]:
    """The settings of the run's data, all of them, as JSON values."""
    return run.data.model_dump(mode="json")


def data_id(run: RunConfig | Experiment | Data) -> str:
    """`<data set>-<12 hex>`: equal for runs that share their shards."""
    data = run if isinstance(run, Data) else run.data
    return f"{slug(data.name)}-{config.digest(config.identity(data), 'data')[:12]}"


def base(experiment: Experiment) -> RunConfig:
    """The run of the experiment itself, without sweep or study."""
    return RunConfig(**{name: getattr(experiment, name) for name in sweep.RUN_SECTIONS})


def apply(run: RunConfig | Experiment, point: Mapping[str, Any], name: str = "the point") -> RunConfig:
    """The run with dotted settings on top; `name` says in errors where they come from."""
    values = {part: _dump(getattr(run, part)) for part in sweep.RUN_SECTIONS}
    laid = overlay(values, sweep.nested(point))
    try:
        return RunConfig.model_validate(laid, context={"root": project_root()})
    except ValidationError as error:
        raise ConfigError("\n".join(messages(error.errors(), RunConfig, laid, Origins({(): name})))) from error


def _dump(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Section) else value


def expand(experiment: Experiment) -> tuple[Run, ...]:
    """The runs of the experiment in the order of the sweep; points with equal settings are one run."""
    layers, numbers = sweep.Layers(experiment), stages()
    runs: dict[str, Run] = {}
    problems: dict[str, None] = {}
    data_ids: dict[str, str] = {}
    for number, point in enumerate(_points(experiment)):
        where = _where(experiment, number, point)
        try:
            parts = layers.parts(point, where)
        except ConfigError as error:
            problems.update(dict.fromkeys(str(error).splitlines()))
            continue
        values = {name: part.value for name, part in parts.items()}
        if point:
            found = run_problems(values, experiment.runtime)
            problems.update((f"{where}: {dotted(path)}: {what}", None) for path, what in found)
        name = digest_text(_identity_text(parts, numbers), "run")
        if name in runs:
            continue
        data = parts["data"].text
        if data not in data_ids:
            data_ids[data] = data_id(values["data"])
        run = RunConfig.model_construct(**values, stages=numbers)
        runs[name] = Run(run_id(experiment.name, point, name), name, run, point, data_ids[data])
    if problems:
        raise ConfigError("\n".join(problems))
    return _told_apart(runs)


def is_point(experiment: Experiment, ref: str) -> bool:
    """Return True if the run of that id is one of several in the experiment: a point of its sweep."""
    runs = expand(experiment)
    return len(runs) > 1 and any(run.id == ref for run in runs)


def _identity_text(parts: dict[str, sweep.Part], stages: dict[str, int]) -> str:
    """The canonical JSON of a run's identity, put together from that of its parts."""
    texts = {**{name: part.text for name, part in parts.items()}, "stages": canonical(stages)}
    return "{" + ",".join(f'"{name}":{texts[name]}' for name in sorted(texts)) + "}"


def _points(experiment: Experiment) -> Iterator[sweep.Point]:
    try:
        yield from sweep.points(experiment.sweep)
    except ConfigError as error:
        origin = experiment._origins.of(("sweep",))
        raise ConfigError(f"{origin}: {error}" if origin else str(error)) from error


def _where(experiment: Experiment, number: int, point: sweep.Point) -> str:
    origin = experiment._origins.of(("sweep",))
    values = ", ".join(f"{name}={shown(value)}" for name, value in point.items())
    return f"{origin + ': ' if origin else ''}sweep point {number} ({values})"


def _told_apart(runs: dict[str, Run]) -> tuple[Run, ...]:
    """The runs, none of which shares its short name with another."""
    shorts: dict[str, str] = {}
    for name in runs:
        if shorts.setdefault(name[:12], name) != name:
            raise ConfigError(f"two runs share the short name {name[:12]}: change the seed of one of them")
    return tuple(runs.values())


def run_id(experiment_name: str, swept: Mapping[str, Any], name: str) -> str:
    """`<slug>-<12 hex>`; the slug tells people the experiment and the swept values."""
    words = [experiment_name, *(_word(key, value) for key, value in swept.items())]
    return f"{slug('-'.join(words))}-{name[:12]}"


def _word(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return "-".join(_word(inner, item) for inner, item in value.items())
    if isinstance(value, str):
        return value
    return f"{key.rpartition('.')[2]}{canonical(value)}"


def slug(text: str) -> str:
    """The text in letters that are safe in a path, at most 64 of them."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text.lower())[:64].strip("-.")


def section_digest(experiment: Experiment, section: str) -> str:
    """A digest that changes when a setting of the section does that can change its results."""
    value = getattr(experiment, section)
    return config.digest(config.identity(value) if isinstance(value, Section) else value, "section")
