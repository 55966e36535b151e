"""From an experiment to its runs: each point of the sweep becomes a run with all its settings, named by a digest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from workflow_lib.config import sweep
from workflow_lib.config.compose import overlay_point, project_root
from workflow_lib.config.experiment import Experiment
from workflow_lib.config.identity import canonical, digest_text
from workflow_lib.config.messages import messages, shown
from workflow_lib.config.run import RunConfig
from workflow_lib.config.run_checks import run_problems
from workflow_lib.config.stages import stages
from workflow_lib.config.yaml import KeyPath, Origins, dotted
from workflow_lib.errors import ConfigError
from workflow_lib.plan.naming import data_id, run_id
from workflow_lib.plugins import Section
from workflow_lib.text import count


@dataclass(frozen=True)
class Run:
    """A run of an experiment; `swept` has the values that the sweep gives it, by dotted name."""

    id: str
    digest: str
    config: RunConfig
    swept: dict[str, Any]
    data_id: str


def base(experiment: Experiment) -> RunConfig:
    """Return the run of the experiment's own settings, without sweep or study."""
    return RunConfig(**{name: getattr(experiment, name) for name in sweep.RUN_SECTIONS})


def apply(run: RunConfig | Experiment, point: Mapping[str, Any], source: str = "the point") -> RunConfig:
    """Return the run with the dotted settings of a point on top; errors name `source` as their origin."""
    values = {part: _dump(getattr(run, part)) for part in sweep.RUN_SECTIONS}
    merged = overlay_point(values, sweep.nested(point))
    try:
        return RunConfig.model_validate(merged, context={"root": project_root()})
    except ValidationError as error:
        raise ConfigError("\n".join(messages(error.errors(), RunConfig, merged, Origins({(): source})))) from error


def _dump(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Section) else value


def expand(experiment: Experiment) -> tuple[Run, ...]:
    """Return the runs of the experiment in the order of the sweep; points with equal settings become the same run.

    Raises ConfigError with the problems of all points, one a line, each of them once.
    """
    layers, numbers = sweep.Layers(experiment), stages()
    runs: dict[str, Run] = {}
    problems: dict[str, None] = {}
    contradictions: dict[tuple[KeyPath, str], list[str]] = {}  # by path and message: the points that have it
    data_ids: dict[str, str] = {}
    for number, point in enumerate(_points(experiment)):
        where = _where(experiment, number, point)
        try:
            parts = layers.parts(point, where)
        except ConfigError as error:
            problems.update(dict.fromkeys(str(error).splitlines()))
            continue
        values = {name: part.value for name, part in parts.items()}
        if point:  # without a sweep, `consistency.check` has already checked the only run
            for problem in dict.fromkeys(run_problems(values, experiment.runtime)):
                contradictions.setdefault(problem, []).append(where)
        name = digest_text(_identity_text(parts, numbers), "run")
        if name in runs:
            continue
        data = parts["data"].text
        if data not in data_ids:
            data_ids[data] = data_id(values["data"])
        run = RunConfig.model_construct(**values, stages=numbers)
        runs[name] = Run(run_id(experiment.name, point, name), name, run, point, data_ids[data])
    if contradictions:
        problems.update(dict.fromkeys(_lines(experiment, contradictions)))
    if problems:
        raise ConfigError("\n".join(problems))
    return _with_unique_short_names(runs)


def _lines(experiment: Experiment, contradictions: Mapping[tuple[KeyPath, str], list[str]]) -> Iterator[str]:
    """Yield a line for each problem, placed at its first point, or at the setting if it is there without a sweep."""
    of_base = set(run_problems({name: getattr(experiment, name) for name in sweep.RUN_SECTIONS}, experiment.runtime))
    for (path, what), where in contradictions.items():
        more = f" and {count(len(where) - 1, 'other point')}" if len(where) > 1 else ""
        in_base = (path, what) in of_base
        place = experiment._origins.place(path) if in_base else f"{where[0]}{more}: {dotted(path)}"
        yield f"{place}: {what}"


def is_point(experiment: Experiment, ref: str) -> bool:
    """Return True if the run of that id is one of several in the experiment: a point of its sweep."""
    runs = expand(experiment)
    return len(runs) > 1 and any(run.id == ref for run in runs)


def _identity_text(parts: dict[str, sweep.Part], stages: dict[str, int]) -> str:
    """Return the canonical JSON of a run's identity, joined from that of its sections.

    The same text as `canonical(identity(run))`, without serialising each section once for every run.
    """
    texts = {**{name: part.text for name, part in parts.items()}, "stages": canonical(stages)}
    return "{" + ",".join(f'"{name}":{texts[name]}' for name in sorted(texts)) + "}"


def _points(experiment: Experiment) -> Iterator[sweep.Point]:
    try:
        yield from sweep.points(experiment.sweep, experiment.seed)
    except ConfigError as error:
        origin = experiment._origins.of(("sweep",))
        raise ConfigError(f"{origin}: {error}" if origin else str(error)) from error


def _where(experiment: Experiment, number: int, point: sweep.Point) -> str:
    origin = experiment._origins.of(("sweep",))
    values = ", ".join(f"{name}={shown(value)}" for name, value in point.items())
    return f"{origin + ': ' if origin else ''}sweep point {number} ({values})"


def _with_unique_short_names(runs: dict[str, Run]) -> tuple[Run, ...]:
    """Return the runs; raise ConfigError if the digests of two begin with the same 12 digits, which name folders."""
    shorts: dict[str, str] = {}
    for name in runs:
        if shorts.setdefault(name[:12], name) != name:
            raise ConfigError(f"two runs share the short name {name[:12]}: change the seed of one of them")
    return tuple(runs.values())
