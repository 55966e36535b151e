"""A run is one fully resolved training; its digest names it, and what a digest names never changes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from workflow_lib import config, files
from workflow_lib.config import points
from workflow_lib.config.checks import run_problems
from workflow_lib.config.compose import overlay
from workflow_lib.config.identity import canonical, digest_text
from workflow_lib.config.problems import messages, shown
from workflow_lib.config.sections import Data, Experiment, Model, Optimizer, Schedule, Training
from workflow_lib.config.yaml12 import Origins, dotted
from workflow_lib.errors import ConfigError
from workflow_lib.plugins import Section

# Bumped by hand when the results of a stage change; the first two are part of a run's digest.
STAGES = {"plan": 1, "preprocess": 1, "train": 1, "evaluate": 1, "suggest": 1, "export": 1, "report": 1}


def _stages() -> dict[str, int]:
    return {name: STAGES[name] for name in ("preprocess", "train")}


class RunConfig(Section):
    """Everything that decides the result of a training."""

    seed: int
    data: Data
    model: Model
    optimizer: Optimizer
    schedule: Schedule
    training: Training
    stages: dict[str, int] = Field(default_factory=lambda: _stages())


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
    return RunConfig(**{name: getattr(experiment, name) for name in points.PARTS})


def tuned_base(experiment: Experiment) -> RunConfig:
    """The run that the trials of the study vary: the experiment with `tune.set`."""
    if experiment.tune is None:
        raise ConfigError("the experiment has no study: write a `tune:` section")
    return apply(base(experiment), experiment.tune.set, "tune.set")


def apply(run: RunConfig | Experiment, point: Mapping[str, Any], name: str = "the point") -> RunConfig:
    """The run with dotted settings on top; `name` says in errors where they come from."""
    values = {part: _dump(getattr(run, part)) for part in points.PARTS}
    laid = overlay(values, points.nested(point))
    try:
        return RunConfig.model_validate(laid, context={"root": None})
    except ValidationError as error:
        raise ConfigError(
            "\n".join(messages(error.errors(), RunConfig, laid, Origins({(): name})))
        ) from error


def _dump(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Section) else value


def expand(experiment: Experiment) -> tuple[Run, ...]:
    """The runs of the experiment in the order of the sweep; points with equal settings are one run."""
    layers, stages = points.Layers(experiment), _stages()
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
        name = digest_text(
            _identity_text({**{n: p.text for n, p in parts.items()}, "stages": canonical(stages)}), "run"
        )
        data = data_ids.setdefault(parts["data"].text, data_id(values["data"]))
        run = RunConfig.model_construct(**values, stages=stages)
        runs.setdefault(name, Run(run_id(experiment.name, point, name), name, run, point, data))
    if problems:
        raise ConfigError("\n".join(problems))
    return _told_apart(runs)


def _points(experiment: Experiment) -> Iterator[points.Point]:
    try:
        yield from points.points(experiment.sweep)
    except ConfigError as error:
        origin = experiment._origins.of(("sweep",))
        raise ConfigError(f"{origin}: {error}" if origin else str(error)) from error


def _where(experiment: Experiment, number: int, point: points.Point) -> str:
    origin = experiment._origins.of(("sweep",))
    values = ", ".join(f"{name}={shown(value)}" for name, value in point.items())
    return f"{origin + ': ' if origin else ''}sweep point {number} ({values})"


def _identity_text(texts: dict[str, str]) -> str:
    return "{" + ",".join(f'"{name}":{texts[name]}' for name in sorted(texts)) + "}"


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


def freeze(run: RunConfig, work: Path) -> Path:
    """The file work/runs/<digest>/config.json holds the run; a file already there is only checked."""
    name = run_digest(run)
    path = work / "runs" / name / "config.json"
    if path.exists():
        _load(path, name)
    else:
        files.write_json(path, run.model_dump(mode="json"))
    return path


def load_run(ref: str, work: Path) -> tuple[RunConfig, str]:
    """The frozen run and its digest; `ref` is an id, a digest, its first 12 digits or a pointer file."""
    if ref.endswith(".json"):
        name = str(files.read_json(Path(ref))["run"]["digest"])
    else:
        match = re.search(r"(?:^|-)([0-9a-f]{12,32})$", ref)
        if not match:
            raise ConfigError(
                f"{ref!r} is not a run: give its id, its digest, or a JSON file that points to it"
            )
        name = match[1]
    found = sorted((work / "runs").glob(f"{name}*/config.json"))
    if len(found) != 1:
        raise ConfigError(
            f"{ref}: {'no frozen run' if not found else 'more than one run'} in {work / 'runs'} by that name"
        )
    return _load(found[0], found[0].parent.name), found[0].parent.name


def _load(path: Path, name: str) -> RunConfig:
    try:
        run = RunConfig.model_validate(files.read_json(path))
    except ValueError as error:
        raise ConfigError(f"{path}: not the settings of a run: {error}") from error
    if run_digest(run) != name:
        raise ConfigError(f"{path}: was changed after it was frozen; delete it and run the plan again")
    return run


def study_definition(experiment: Experiment) -> dict[str, Any]:
    """What decides the suggestions of the study: its settings and the run it varies."""
    if experiment.tune is None:
        raise ConfigError("the experiment has no study: write a `tune:` section")
    return {
        "tune": config.identity(experiment.tune),
        "base": config.identity(tuned_base(experiment)),
        "stage": STAGES["suggest"],
    }


def study_digest(experiment: Experiment) -> str:
    """The name of the study: 32 hex digits; a larger number of trials is the same study."""
    return config.digest(study_definition(experiment), "study")


def study_id(experiment: Experiment) -> str:
    """`<experiment>-<12 hex>`."""
    return f"{slug(experiment.name)}-{study_digest(experiment)[:12]}"


def section_digest(experiment: Experiment, section: str) -> str:
    """A digest that changes when a setting of the section does that can change its results."""
    value = getattr(experiment, section)
    return config.digest(config.identity(value) if isinstance(value, Section) else value, "section")


def plan(experiment: Experiment) -> dict[str, Any]:
    """The plan as JSON values: the runs and the study."""
    study = None
    if experiment.tune is not None:
        study = {
            "id": study_id(experiment),
            "digest": study_digest(experiment),
            "trials": experiment.tune.trials,
            "window": experiment.tune.window,
            "data_id": data_id(tuned_base(experiment)),
        }
    runs = [
        {"id": r.id, "digest": r.digest, "data_id": r.data_id, "swept": r.swept} for r in expand(experiment)
    ]
    return {"experiment": experiment.name, "runs": runs, "study": study}


def plan_digest(experiment: Experiment) -> str:
    """A digest of the runs and the study: labels and the like do not change it."""
    return config.digest(plan(experiment), "plan")


def write_plan(experiment: Experiment, work: Path, output: Path) -> None:
    """Every run is frozen, the study's base too, and the plan is written, last."""
    for run in expand(experiment):
        freeze(run.config, work)
    if experiment.tune is not None:
        freeze(tuned_base(experiment), work)
    files.write_json(output, plan(experiment))
