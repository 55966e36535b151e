"""A run is one fully resolved training; its digest names it, and what a digest names never changes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from workflow_lib import clones, config, files, plugins
from workflow_lib.config import points
from workflow_lib.config.checks import run_problems
from workflow_lib.config.compose import overlay, project_root
from workflow_lib.config.identity import canonical, digest_text
from workflow_lib.config.parts import METRICS, Augment, Data, Model, Optimizer, Schedule, Training
from workflow_lib.config.problems import messages, shown
from workflow_lib.config.sections import CategoricalSpace, Experiment, Tune
from workflow_lib.config.yaml12 import Origins, dotted
from workflow_lib.errors import ConfigError, EverstepError, StateError
from workflow_lib.plugins import Section

# Bumped by hand when the results of a stage change; the first two are part of a run's digest.
STAGES = {"plan": 1, "preprocess": 2, "train": 2, "evaluate": 3, "suggest": 1, "export": 1, "report": 2, "track": 1}


def stages() -> dict[str, int]:
    """The numbers of the stages that a run's digest covers."""
    return {name: STAGES[name] for name in ("preprocess", "train")}


class RunConfig(Section):
    """Everything that decides the result of a training."""

    seed: int
    data: Data
    model: Model
    optimizer: Optimizer
    schedule: Schedule
    training: Training
    augment: Augment
    stages: dict[str, int] = Field(default_factory=lambda: stages())


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


def studied(experiment: Experiment) -> list[RunConfig]:
    """Runs with all the models, hooks and files that the trials of the study and its best run may have."""
    if (tune := experiment.tune) is None:
        return []
    found = [tuned_base(experiment), base(experiment)]
    for name, space in sorted(tune.space.items()):
        if isinstance(space, CategoricalSpace) and name.startswith(("model.", "training.hooks")):
            for start in found[:2]:
                for choice in space.choices:
                    with suppress(ConfigError):  # a setting of another model than that of the experiment
                        found.append(apply(start, {name: choice}))
    return found


def apply(run: RunConfig | Experiment, point: Mapping[str, Any], name: str = "the point") -> RunConfig:
    """The run with dotted settings on top; `name` says in errors where they come from."""
    values = {part: _dump(getattr(run, part)) for part in points.PARTS}
    laid = overlay(values, points.nested(point))
    try:
        return RunConfig.model_validate(laid, context={"root": project_root()})
    except ValidationError as error:
        raise ConfigError("\n".join(messages(error.errors(), RunConfig, laid, Origins({(): name})))) from error


def _dump(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Section) else value


def expand(experiment: Experiment) -> tuple[Run, ...]:
    """The runs of the experiment in the order of the sweep; points with equal settings are one run."""
    layers, numbers = points.Layers(experiment), stages()
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


def _identity_text(parts: dict[str, points.Part], stages: dict[str, int]) -> str:
    """The canonical JSON of a run's identity, put together from that of its parts."""
    texts = {**{name: part.text for name, part in parts.items()}, "stages": canonical(stages)}
    return "{" + ",".join(f'"{name}":{texts[name]}' for name in sorted(texts)) + "}"


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


def freeze(run: RunConfig, work: Path, name: str | None = None) -> Path:
    """The file work/runs/<digest>/config.json holds the run; a file already there is only checked.

    It is not forced to the disk: one that a power loss took, or left torn, is frozen again by the next plan, and of
    ten thousand runs each would wait for the disk twice.
    """
    name = name or run_digest(run)
    path = work / "runs" / name / "config.json"
    text = files.json_text(run.model_dump(mode="json"))
    try:
        there = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        there = ""
    if there != text:
        if _is_torn(there):
            files.write_atomic(path, text, durable=False)
        else:
            _load(path, name)
    return path


def freeze_study(experiment: Experiment, folder: Path, work: Path) -> None:
    """The runs that the study's files name are frozen, also where the store was lost since."""
    for path in [*sorted(folder.glob("suggest-*.json")), *folder.glob("best.json")]:
        content = files.read_json(path, "run", "params")
        if not (work / "runs" / content["run"]["digest"] / "config.json").exists():
            start = base(experiment) if path.name == "best.json" else tuned_base(experiment)
            freeze(apply(start, content["params"], str(path)), work)


def _is_torn(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return True
    return False


def load_run(ref: str, work: Path) -> tuple[RunConfig, str]:
    """The frozen run and its digest; `ref` is an id, a digest, its first 12 digits or more, or a pointer file."""
    path = _frozen(ref, work)
    return _load(path, path.parent.name), path.parent.name


def _frozen(ref: str, work: Path) -> Path:
    match = re.search(r"(?:^|-)([0-9a-f]{12,32})$", _pointed(ref) if ref.endswith(".json") else ref)
    if not match:
        raise ConfigError(f"{ref!r} is not a run: give its id, its digest, or a JSON file that points to it")
    whole = work / "runs" / match[1] / "config.json"
    if whole.exists():  # a whole digest: not looked for among all runs
        return whole
    found = sorted((work / "runs").glob(f"{match[1]}*/config.json"))
    if len(found) > 1:
        raise ConfigError(f"{ref}: {len(found)} runs in {work / 'runs'} begin like this; give more of the digest")
    if not found:
        raise ConfigError(
            f"{ref}: no such run in {work / 'runs'}; the pipeline's plan freezes the runs of an experiment"
        )
    return found[0]


def _pointed(ref: str) -> str:
    """The digest in a JSON file such as best.json."""
    try:
        return str(files.read_json(Path(ref), "run")["run"]["digest"])
    except OSError as error:
        raise ConfigError(f"{ref}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{ref}: does not point to a run; a file such as best.json holds run.digest") from error


def _load(path: Path, name: str) -> RunConfig:
    try:
        run = RunConfig.model_validate(files.read_json(path))
    except StateError as error:
        raise ConfigError(str(error)) from error
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ConfigError(
            f"{path}: not the settings of a run, or of another version: {reason}. {files.REMAKE}"
        ) from error
    if run_digest(run) != name:
        raise ConfigError(
            f"{path}: not what was frozen under this name; move {path.parent} away and run the plan again"
        )
    return run


def study_definition(experiment: Experiment) -> dict[str, Any]:
    """What decides the suggestions of the study: its settings and the run it varies."""
    if experiment.tune is None:
        raise ConfigError("the experiment has no study: write a `tune:` section")
    return {
        "tune": config.identity(experiment.tune) | {"metric": study_metric(experiment)},
        "base": config.identity(tuned_base(experiment)),
        "stage": STAGES["suggest"],
    }


def study_metric(experiment: Experiment) -> str:
    """What the study improves: what it names, or what is usual for the task of the data."""
    if experiment.tune is not None and experiment.tune.metric is not None:
        return experiment.tune.metric
    metrics = METRICS[plugins.task(experiment.data.name, experiment.data.params)]
    return "val_accuracy" if "val_accuracy" in metrics else "val_loss"


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


def plan(experiment: Experiment, runs: Sequence[Run]) -> dict[str, Any]:
    """The plan as JSON values: the runs and the study."""
    listed = [{"id": r.id, "digest": r.digest, "data_id": r.data_id, "swept": r.swept} for r in runs]
    return {"experiment": experiment.name, "runs": listed, "study": _study(experiment)}


def reported_runs(plan_file: Path) -> list[str]:
    """The names of the runs in a plan.json, with `tuned` where it has a study."""
    try:
        written = files.read_json(plan_file)
        return [*(str(run["id"]) for run in written["runs"]), *(["tuned"] if written["study"] else [])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{plan_file}: not a plan that `freeze` wrote: {error}") from error


def _study(experiment: Experiment) -> dict[str, Any] | None:
    if experiment.tune is None:
        return None
    return {
        "id": study_id(experiment),
        "digest": study_digest(experiment),
        "base": run_digest(base(experiment)),
        "data_id": data_id(experiment),
        "trials": experiment.tune.trials,
        "window": experiment.tune.window,
    }


def plan_digest(experiment: Experiment, runs: Sequence[Run]) -> str:
    """A digest of the runs and the study: labels and the like do not change it."""
    return config.digest(plan(experiment, runs), "plan")


def write_plan(experiment: Experiment, work: Path, output: Path) -> None:
    """Every run and the study's definition are frozen, and then the plan is written."""
    if output.parent.name == experiment.name:
        clones.note(work, output.parents[1])
    runs = expand(experiment)
    for run in runs:
        freeze(run.config, work, run.digest)
    if experiment.tune is not None:
        frozen = work / "studies" / study_digest(experiment) / "study.json"
        if not frozen.exists():
            files.write_json(frozen, study_definition(experiment))
    files.write_json(output, plan(experiment, runs))


def table(experiment: Experiment) -> str:
    """The runs as text: a line a run with its id and the values that the sweep gives it, then the study."""
    runs = expand(experiment)
    data = {run.data_id for run in runs}
    names = list(dict.fromkeys(name for run in runs for name in run.swept))
    columns = names if len(data) == 1 else [*names, "data"]
    rows = [[run.id, *(_cell(run.swept, name) for name in names), run.data_id][: len(columns) + 1] for run in runs]
    total = sum(1 for _ in points.points(experiment.sweep))
    lines = [f"{experiment.name}: {count(len(runs), 'run')}, {count(len(data), 'data set')}"]
    if total > len(runs):
        lines[0] += f" ({total} points of the sweep; those with equal settings are one run)"
    lines += ["", *aligned([["run", *columns], *rows])]
    if experiment.tune is not None:
        lines += ["", *_study_lines(experiment, experiment.tune)]
    return "\n".join(lines)


def columns(experiment: Experiment) -> list[str]:
    """Lines that say what each data set of tables takes its columns for, or why it would be rejected."""
    data = {run.data_id: run.config.data for run in expand(experiment)}
    lines = []
    for name, of_run in data.items():
        try:
            described = plugins.described(of_run.name, of_run.params, Path.cwd())
        except (EverstepError, OSError) as error:
            described = [f"rejected: {error}"]
        lines += [line for line in ("", f"columns of {name}:", *(f"  {one}" for one in described)) if described]
    return lines


def count(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _cell(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return ""
    return values[name] if isinstance(values[name], str) else canonical(values[name])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line a row, the columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _study_lines(experiment: Experiment, tune: Tune) -> list[str]:
    head = (
        f"study {study_id(experiment)}: {count(tune.trials, 'trial')}, {tune.window} at a time,"
        f" for {study_metric(experiment)}; the best is trained as `tuned`"
    )
    rows = [[f"  {name}", canonical(config.identity(space))] for name, space in tune.space.items()]
    rows += [[f"  {name}", f"{canonical(value)} in the trials only"] for name, value in tune.set.items()]
    return [head, *aligned(rows)]
