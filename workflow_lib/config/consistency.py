"""Checks of the whole experiment: the machine, the sweep, and the study with its trials."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, get_origin

from workflow_lib import plugins
from workflow_lib.config import registry
from workflow_lib.config.annotations import sections_of
from workflow_lib.config.experiment import (
    CategoricalSpace,
    Experiment,
    FloatSpace,
    IntSpace,
    Runtime,
    Sweep,
    Tune,
    Views,
)
from workflow_lib.config.hints import meant_by
from workflow_lib.config.messages import shown, unknown
from workflow_lib.config.metric_checks import metric_problem
from workflow_lib.config.run import Data
from workflow_lib.config.run_checks import run_problems
from workflow_lib.config.sweep import RUN_SECTIONS, Layers, Point
from workflow_lib.config.yaml import KeyPath, Origins, dotted
from workflow_lib.errors import ConfigError, shortened
from workflow_lib.plugins import in_identity
from workflow_lib.text import joined, nearest


def check(experiment: Experiment, origins: Origins) -> list[str]:
    """Return a message for each contradiction. Points of a sweep are checked later, by `plan.expand`."""
    found: list[tuple[KeyPath, str]] = []
    if not is_swept(experiment.sweep):
        found += run_problems({name: getattr(experiment, name) for name in RUN_SECTIONS}, experiment.runtime)
    found += _runtime_problems(experiment.runtime)
    found += _view_problems(experiment.evaluate.tta, experiment.data)
    found += _sweep_problems(experiment.sweep)
    if experiment.tune is not None:
        found += _tune_problems(experiment.tune, experiment.sweep)
        task = plugins.task(experiment.data.name, experiment.data.params)
        metric = experiment.tune.metric
        if metric is not None and (what := metric_problem(metric, task, experiment.training)):
            found.append((("tune", "metric"), what))
    if experiment.registry is not None:
        task = plugins.task(experiment.data.name, experiment.data.params)
        if what := registry.problem(experiment.registry, task, experiment.training):
            found.append((("registry", "metric"), what))
    lines = [f"{origins.place(path)}: {what}" for path, what in dict.fromkeys(found)]
    if experiment.tune is not None and not found:
        lines += _trial_problems(experiment, experiment.tune, origins)
    return lines


def is_swept(sweep: Sweep) -> bool:
    """Return True if the experiment has a sweep: then its settings are a run only with a point on top."""
    return bool(sweep.grid or sweep.zip or sweep.list or sweep.seeds or sweep.folds)


def _runtime_problems(runtime: Runtime) -> Iterator[tuple[KeyPath, str]]:
    if runtime.nproc > 1 and ":" in runtime.device:
        yield (
            ("runtime", "device"),
            f"{runtime.device} is for one process, and runtime.nproc is {runtime.nproc}; allowed: auto, cpu, cuda",
        )


def _view_problems(tta: Views, data: Data) -> Iterator[tuple[KeyPath, str]]:
    """Yield why the views of a test image cannot be averaged; what is known only with the data is checked later."""
    facts, task = plugins.facts(data.name, data.params), plugins.task(data.name, data.params)
    names = [name for name, known in plugins.all_facts().items() if known.averaging is not None]
    for name, value in tta:
        if value and facts.inputs not in (None, "images"):
            yield ("evaluate", "tta", name), f"{shown(value)} is for images, and the data has {facts.inputs}"
        elif value and plugins.task_facts(task).averaging is None:
            yield ("evaluate", "tta", name), f"{shown(value)} does not apply to {task}, only to {', '.join(names)}"
    if facts.size is not None and tta.shift >= min(facts.size):
        size, most = "x".join(map(str, facts.size)), min(facts.size) - 1
        yield (
            ("evaluate", "tta", "shift"),
            f"{tta.shift} pixels move an image of {size} out of sight; allowed: at most {most}",
        )


@cache
def name_problem(name: str) -> str | None:
    """Return the reason why a dotted name cannot be swept or tuned, or None."""
    here: Any = Experiment
    parts = name.split(".")
    for depth, part in enumerate(parts):
        if part not in (fields := _fields(here)):
            return unknown(name, [".".join([*parts[:depth], field]) for field in fields], meant_by(tuple(parts), {}))
        owners = [section for section in sections_of(here) if part in section.model_fields]
        if not all(in_identity(section, part) for section in owners):
            return (
                f"{'.'.join(parts[: depth + 1])} cannot change the result of a run, so these runs would be the same;"
                f" set it once for the experiment. Allowed: {', '.join(RUN_SECTIONS)} and the settings in them"
            )
        here = owners[0].model_fields[part].annotation
        if get_origin(here) is dict:
            return None
    return None


def _fields(annotation: Any) -> list[str]:
    """Return the settings that a section has in any of its variants."""
    return list(dict.fromkeys(name for section in sections_of(annotation) for name in section.model_fields))


def _sweep_problems(sweep: Sweep) -> Iterator[tuple[KeyPath, str]]:
    lengths = {name: len(values) for name, values in sweep.zip.items()}
    if len(set(lengths.values())) > 1:
        counted = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        yield ("sweep", "zip"), f"the lists must have the same length, but {counted}"
    axes: dict[str, str] = {}
    for path, name, value in _swept(sweep):
        if reason := name_problem(name):
            yield path, reason
        elif _takes_settings(name) and not isinstance(value, dict | None):
            yield path, f"{shown(value)} is not allowed; a mapping of settings"
        axis = str(path[1])
        if axes.setdefault(name, axis) != axis:
            yield path, f"{name} is also in sweep.{axes[name]}; keep one of them"
    for setting, names in (("seeds", ("seed",)), ("folds", ("data.folds", "data.fold"))):
        if getattr(sweep, setting) is None:
            continue
        for name in names:
            if clash := next((other for other in sorted(axes) if _overlap(name, other)), None):
                yield ("sweep", setting), f"{clash} is also in sweep.{axes[clash]}; keep one of them"
            axes[name] = setting
    if sweep.exclude and not axes:
        yield ("sweep", "exclude"), "there is no sweep to exclude points from; add grid, zip or list"
    for number, pattern in enumerate(sweep.exclude):
        for name in pattern:
            if axes and name not in axes:
                yield (
                    ("sweep", "exclude", number),
                    joined(
                        f"{shortened(name)} is not swept{nearest(name, axes)}", f"the sweep sets: {', '.join(axes)}"
                    ),
                )


def _swept(sweep: Sweep) -> Iterator[tuple[KeyPath, str, Any]]:
    for axis, mapping in (("grid", sweep.grid), ("zip", sweep.zip)):
        for name, values in mapping.items():
            yield from ((("sweep", axis, name), name, value) for value in values)
    for number, point in enumerate(sweep.list):
        yield from ((("sweep", "list", number, name), name, value) for name, value in point.items())


@cache
def _takes_settings(name: str) -> bool:
    here: Any = Experiment
    for part in name.split("."):
        owners = [section for section in sections_of(here) if part in section.model_fields]
        if not owners:
            return False
        here = owners[0].model_fields[part].annotation
    return bool(sections_of(here)) or get_origin(here) is dict


def _tune_problems(tune: Tune, sweep: Sweep) -> Iterator[tuple[KeyPath, str]]:
    for setting in ("seeds", "folds"):
        if getattr(sweep, setting) is not None:
            yield (
                ("sweep", setting),
                "the trials of a study are not repeated, so its best would be compared with means as a single run;"
                " leave out `tune`, and repeat its best settings by a sweep in another experiment",
            )
    swept = {name for _, name, _ in _swept(sweep)}
    for name in (*tune.space, *tune.set):
        path: KeyPath = ("tune", "space" if name in tune.space else "set", name)
        if reason := name_problem(name):
            yield path, reason
        elif name.split(".")[0] == "data":
            yield (
                path,
                (
                    "a study cannot vary the data: scores on different data cannot be compared;"
                    " write it in `sweep:`, which reports each data set separately"
                ),
            )
    for name, space in tune.space.items():
        path = ("tune", "space", name)
        if name == "seed":
            yield (
                path,
                (
                    "a study would pick the luckiest seed; leave it out, and repeat the best settings by `sweep.seeds`"
                    " in another experiment"
                ),
            )
        if clash := next((other for other in sorted(swept) if _overlap(name, other)), None):
            yield path, f"{clash} is also swept: a point fixes what the study varies; keep one of them"
        if clash := next((other for other in tune.set if _overlap(name, other)), None):
            yield path, f"{clash} is also in tune.set: a setting is either fixed or tuned; keep one of them"
        yield from ((path, what) for what in _space_problems(space))


def _overlap(a: str, b: str) -> bool:
    return a == b or a.startswith(b + ".") or b.startswith(a + ".")


def _space_problems(space: FloatSpace | IntSpace | CategoricalSpace) -> Iterator[str]:
    if isinstance(space, CategoricalSpace):
        if len({(type(choice), choice) for choice in space.choices}) < len(space.choices):
            yield "a choice occurs twice"
        return
    if space.low >= space.high:
        yield f"low={space.low:g} is not below high={space.high:g}"
    if space.log and space.low <= 0:
        yield f"a logarithmic scale needs low above 0 (it is {space.low:g})"
    stepped = space.step not in (None, 1) if isinstance(space, IntSpace) else space.step is not None
    if space.log and stepped:
        yield "log and step exclude each other; keep one"
    elif stepped and space.step is not None and space.low < space.high:
        steps = (space.high - space.low) / space.step
        if abs(steps - round(steps)) > 1e-8 * max(1.0, steps):
            reachable = space.low + int(steps) * space.step
            yield f"steps of {space.step:g} from low={space.low:g} do not reach high; write high: {reachable:g}"


def _trial_problems(experiment: Experiment, tune: Tune, origins: Origins) -> list[str]:
    """Return the problems of trials at the ends of each range of the study, and at each choice."""
    layers = Layers(experiment)
    lines: dict[KeyPath, list[str]] = {}
    for path, point in _corners(tune):
        where = origins.place(path)
        try:
            values = {name: part.value for name, part in layers.parts(point, where).items()}
        except ConfigError as error:
            lines.setdefault(path, str(error).splitlines())
            continue
        if found := list(run_problems(values, experiment.runtime)):
            lines.setdefault(path, [_located(tune, p, what, where, origins) for p, what in found])
    return list(dict.fromkeys(line for found in lines.values() for line in found))


def _located(tune: Tune, path: KeyPath, what: str, where: str, origins: Origins) -> str:
    """Return the message, placed at the setting that it is about if the study varies it, else at the trial's point."""
    name = dotted(path)
    if name in tune.space:
        return f"{origins.place(('tune', 'space', name))}: {what}"
    return f"{where}: {name}: {what}"


def _corners(tune: Tune) -> Iterator[tuple[KeyPath, Point]]:
    """Yield points at the ends of the space, with `tune.set` as for trials and without it as for the best run."""
    values = {name: _ends(space) for name, space in tune.space.items()}
    first: Point = {name: ends[0] for name, ends in values.items()}
    for fixed in (tune.set, {}) if tune.set else ({},):
        for name, ends in values.items():
            yield from ((("tune", "space", name), {**fixed, **first, name: value}) for value in ends)


def _ends(space: FloatSpace | IntSpace | CategoricalSpace) -> list[Any]:
    if isinstance(space, CategoricalSpace):
        return list(space.choices)
    if isinstance(space, IntSpace):
        return [space.low, space.high]
    # Also a value within: for a whole-number setting, both ends can be valid although a fraction is not.
    return [space.low, space.low + (space.step or (space.high - space.low) * 0.382), space.high]
