"""What no single setting can know: settings that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_origin

from workflow_lib import plugins
from workflow_lib.config.experiment import CategoricalSpace, Experiment, FloatSpace, IntSpace, Runtime, Sweep, Tune
from workflow_lib.config.messages import nearest, sections_of, shown, unknown
from workflow_lib.config.run import Training
from workflow_lib.config.sweep import RUN_SECTIONS, Layers, Point
from workflow_lib.config.yaml import KeyPath, Origins, dotted
from workflow_lib.errors import ConfigError, shortened
from workflow_lib.plugins import in_identity

# What each kind of device can compute in; `auto` is known only where the training runs.
PRECISIONS = {
    "cpu": ("fp32", "bf16"),
    "cuda": ("fp32", "bf16", "fp16", "tf32"),
}


def check(experiment: Experiment, origins: Origins) -> list[str]:
    """A message for each contradiction, sweep points apart: those are checked when the sweep is expanded."""
    found: list[tuple[KeyPath, str]] = []
    if not is_swept(experiment.sweep):
        found += run_problems({name: getattr(experiment, name) for name in RUN_SECTIONS}, experiment.runtime)
    found += _runtime_problems(experiment.runtime)
    found += _sweep_problems(experiment.sweep)
    if experiment.tune is not None:
        found += _tune_problems(experiment.tune, experiment.sweep)
        task = plugins.task(experiment.data.name, experiment.data.params)
        if experiment.tune.metric not in (None, *plugins.task_facts(task).curves):
            found.append((("tune", "metric"), _no_metric(str(experiment.tune.metric), task)))
    lines = [f"{_place(origins, path)}{dotted(path)}: {what}" for path, what in dict.fromkeys(found)]
    if experiment.tune is not None and not found:
        lines += _trial_problems(experiment, experiment.tune, origins)
    return lines


def _place(origins: Origins, path: KeyPath) -> str:
    origin = origins.of(path)
    return f"{origin}: " if origin else ""


def is_swept(sweep: Sweep) -> bool:
    """True when the experiment has points of its own, and its plain settings are no run."""
    return bool(sweep.grid or sweep.zip or sweep.list)


def run_problems(run: Mapping[str, Any], runtime: Runtime) -> Iterator[tuple[KeyPath, str]]:
    """The contradictions inside one run, given its parts, on the machine it is meant for."""
    training, schedule, data = run["training"], run["schedule"], run["data"]
    if data.validation_fraction + data.test_fraction >= 1:
        yield (
            ("data", "validation_fraction"),
            f"{data.validation_fraction:g} and data.test_fraction={data.test_fraction:g} leave nothing to train on;"
            " allowed: a sum below 1",
        )
    if schedule.warmup_epochs > training.epochs:
        yield (
            ("schedule", "warmup_epochs"),
            f"the warm-up ({schedule.warmup_epochs:g} epochs) is longer than the training"
            f" (training.epochs={training.epochs}); allowed: at most that",
        )
    ranks = runtime.nproc * runtime.nodes
    least = ranks * training.accumulation_steps
    if training.batch_size < least:
        yield (
            ("training", "batch_size"),
            f"{training.batch_size} samples are too few for {ranks} ranks (runtime.nproc x runtime.nodes) x"
            f" {training.accumulation_steps} micro-batches (training.accumulation_steps); allowed: at least {least}",
        )
    yield from _task_problems(run)
    yield from data_problems(run, plugins.facts(data.name, data.params))
    yield from _together(training)
    device = runtime.device.partition(":")[0]
    if training.precision not in PRECISIONS.get(device, (training.precision,)):
        yield (
            ("training", "precision"),
            f"{training.precision} cannot be computed on runtime.device={runtime.device};"
            f" allowed there: {', '.join(PRECISIONS[device])}",
        )
    if training.parallel == "fsdp" and run["optimizer"].name == "muon":
        yield (
            ("training", "parallel"),
            "fsdp cuts the matrices that optimizer.name=muon needs whole; allowed with muon: ddp",
        )


def _task_problems(run: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Settings that the task of the data has no use for."""
    training, task = run["training"], plugins.task(run["data"].name, run["data"].params)
    metrics: dict[KeyPath, str] = {("training", "select_metric"): training.select_metric}
    if training.early_stopping is not None:
        metrics["training", "early_stopping", "metric"] = training.early_stopping.metric
    for path, metric in metrics.items():
        if metric not in plugins.task_facts(task).curves:
            yield path, _no_metric(metric, task)
    facts = plugins.all_facts()
    for name in dict.fromkeys(setting for known in facts.values() for setting in known.settings):
        tasks = [other for other, known in facts.items() if name in known.settings]
        value, default = getattr(training, name), type(training).model_fields[name].default
        if value != default and task not in tasks:
            yield (
                ("training", name),
                f"{shown(value)} has no meaning in {task}, only in {', '.join(tasks)}; allowed: {shown(default)}",
            )


def data_problems(run: Mapping[str, Any], known: plugins.DatasetFacts) -> Iterator[tuple[KeyPath, str]]:
    """Settings that do not fit the data, as far as it is known before it is read."""
    data, training, augment = run["data"], run["training"], run["augment"]
    model = run["model"].name
    accepted = plugins.accepted_inputs(model)
    if known.inputs is not None and known.inputs not in accepted:
        fitting = [name for name in plugins.available("models") if known.inputs in plugins.accepted_inputs(name)]
        yield (
            ("model", "name"),
            f"{model} is for {' or '.join(accepted)}, and data.name={data.name} has {known.inputs};"
            f" allowed: {', '.join(fitting)}",
        )
    if known.inputs not in (None, "images"):
        for name, value in augment:
            if value:
                yield ("augment", name), f"{shown(value)} is for images, and the data has {known.inputs}; allowed: 0"
    if known.size is not None and (what := crop_problem(augment.crop, known.size)):
        yield ("augment", "crop"), what
    weights = training.class_weights
    if known.classes is not None and isinstance(weights, list) and len(weights) != known.classes:
        yield (
            ("training", "class_weights"),
            f"{len(weights)} weights; the data has {known.classes} classes, and each needs one",
        )
    if known.samples is not None and data.validation_fraction + data.test_fraction < 1:
        held_out = [round(known.samples * part) for part in (data.validation_fraction, data.test_fraction)]
        if what := batch_problem(training.batch_size, known.samples - sum(held_out)):
            yield ("training", "batch_size"), what


def batch_problem(batch_size: int, samples: int) -> str | None:
    """What is wrong with `training.batch_size` for so many samples in the training split."""
    if batch_size <= samples:
        return None
    return f"{batch_size} samples are more than the training split has; allowed: at most {samples}"


def crop_problem(crop: int, size: tuple[int, int]) -> str | None:
    """What is wrong with `augment.crop` for images of this height and width."""
    height, width = size
    if crop < min(size):
        return None
    return f"{crop} pixels can move an image of {height}x{width} out of sight; allowed: at most {min(size) - 1}"


def _runtime_problems(runtime: Runtime) -> Iterator[tuple[KeyPath, str]]:
    if runtime.nproc > 1 and ":" in runtime.device:
        yield (
            ("runtime", "device"),
            f"{runtime.device} is for one process, and runtime.nproc is {runtime.nproc}; allowed: auto, cpu, cuda",
        )


def _together(training: Training) -> Iterator[tuple[KeyPath, str]]:
    """Switches of the training that exclude each other."""
    if training.compile and training.activation_checkpointing:
        yield (
            ("training", "activation_checkpointing"),
            "true, and training.compile is true, too: the compiler cannot follow it; keep one of them",
        )
    if training.compile and training.parallel == "fsdp":
        yield ("training", "compile"), "true cannot be combined with training.parallel=fsdp; allowed: false, or ddp"
    if training.sampling == "balanced" and training.class_weights == "balanced":
        yield ("training", "class_weights"), "balanced, and training.sampling is balanced, too; keep one of them"


def _no_metric(metric: str, task: plugins.Task) -> str:
    return f"{metric} is not measured in {task}; allowed: {', '.join(plugins.task_facts(task).curves)}"


@cache
def name_problem(name: str) -> str | None:
    """Why a dotted name cannot be swept or tuned; None when it can."""
    here: Any = Experiment
    parts = name.split(".")
    for depth, part in enumerate(parts):
        if part not in (fields := _fields(here)):
            return unknown(name, [".".join([*parts[:depth], field]) for field in fields])
        owners = [section for section in sections_of(here) if part in section.model_fields]
        if not all(in_identity(section, part) for section in owners):
            return (
                f"{'.'.join(parts[: depth + 1])} cannot change the result of a run, so all these runs would be one;"
                f" set it once for the experiment. Settings that can: {', '.join(RUN_SECTIONS)} and what is in them"
            )
        here = owners[0].model_fields[part].annotation
        if get_origin(here) is dict:
            return None
    return None


def _fields(annotation: Any) -> list[str]:
    """The settings that a section has in any of its variants."""
    return list(dict.fromkeys(name for section in sections_of(annotation) for name in section.model_fields))


def _sweep_problems(sweep: Sweep) -> Iterator[tuple[KeyPath, str]]:
    lengths = {name: len(values) for name, values in sweep.zip.items()}
    if len(set(lengths.values())) > 1:
        counted = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        yield ("sweep", "zip"), f"the lists go side by side and need one length, but {counted}"
    axes: dict[str, str] = {}
    for path, name, value in _swept(sweep):
        if reason := name_problem(name):
            yield path, reason
        elif _takes_settings(name) and not isinstance(value, dict | None):
            yield path, f"{shown(value)} is not allowed; a mapping of settings"
        axis = str(path[1])
        if axes.setdefault(name, axis) != axis:
            yield path, f"{name} is in sweep.{axes[name]} too; write it once"
    if sweep.exclude and not axes:
        yield ("sweep", "exclude"), "there is no sweep to leave points out of; write grid, zip or list"
    for number, pattern in enumerate(sweep.exclude):
        for name in pattern:
            if axes and name not in axes:
                yield (
                    ("sweep", "exclude", number),
                    f"{shortened(name)} is not swept{nearest(name, axes)}; the sweep sets: {', '.join(axes)}",
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
    swept = {name for _, name, _ in _swept(sweep)}
    for name in (*tune.space, *tune.set):
        path: KeyPath = ("tune", "space" if name in tune.space else "set", name)
        if reason := name_problem(name):
            yield path, reason
        elif name.split(".")[0] == "data":
            yield (
                path,
                (
                    "a study does not change the data: scores on different data cannot be compared;"
                    " write it in `sweep:`, which reports each data set by itself"
                ),
            )
    for name, space in tune.space.items():
        path = ("tune", "space", name)
        if clash := next((other for other in sorted(swept) if _overlap(name, other)), None):
            yield path, f"{clash} is swept too: a point fixes it and the study varies it; keep one of them"
        if clash := next((other for other in tune.set if _overlap(name, other)), None):
            yield path, f"{clash} is in tune.set too: it is fixed or it is tuned; keep one of them"
        yield from ((path, what) for what in _space_problems(space))


def _overlap(a: str, b: str) -> bool:
    return a == b or a.startswith(b + ".") or b.startswith(a + ".")


def _space_problems(space: FloatSpace | IntSpace | CategoricalSpace) -> Iterator[str]:
    if isinstance(space, CategoricalSpace):
        if len({(type(choice), choice) for choice in space.choices}) < len(space.choices):
            yield "a choice is written twice"
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
    """What is wrong somewhere in the space of the study: at the ends of each range, and at each choice."""
    layers = Layers(experiment)
    lines: dict[KeyPath, list[str]] = {}
    for path, point in _corners(tune):
        where = f"{_place(origins, path)}{dotted(path)}"
        try:
            values = {name: part.value for name, part in layers.parts(point, where).items()}
        except ConfigError as error:
            lines.setdefault(path, str(error).splitlines())
            continue
        if found := list(run_problems(values, experiment.runtime)):
            lines.setdefault(path, [_blamed(tune, p, what, where, origins) for p, what in found])
    return list(dict.fromkeys(line for found in lines.values() for line in found))


def _blamed(tune: Tune, path: KeyPath, what: str, where: str, origins: Origins) -> str:
    """The message, placed at the setting it is about where the study sets that one, else at the trial's."""
    name = dotted(path)
    if name in tune.space:
        return f"{_place(origins, ('tune', 'space', name))}tune.space.{name}: {what}"
    return f"{where}: {name}: {what}"


def _corners(tune: Tune) -> Iterator[tuple[KeyPath, Point]]:
    """Points at the ends of the space, as the trials have them and as the best run may."""
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
    return [space.low, space.low + (space.step or (space.high - space.low) * 0.382), space.high]
