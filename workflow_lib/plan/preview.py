"""Checks of runs before training: of settings against the headers of data files, and of models.

torch is imported only where a model is built: one of the user, one that is read from files or has large sizes, batch
norm that may get a single value, and for the sizes that `everstep plan` shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workflow_lib import config, plugins
from workflow_lib.config.experiment import Runtime
from workflow_lib.config.length import Length
from workflow_lib.config.run_checks import data_problems, training_samples
from workflow_lib.config.yaml import dotted
from workflow_lib.errors import ConfigError, EverstepError
from workflow_lib.plan import RunConfig, data_settings, init_check, metric_check, model_check, prepared, step_check
from workflow_lib.text import count

LARGE = 256  # a model of this package with smaller numbers in its settings fits some device
MOST_MODELS = 32  # of those that a sweep compares; the others are checked when their training starts


@dataclass
class Preview:
    """Problems of runs, notes on what only the training can tell, and lines with the sizes and lengths of trainings."""

    problems: dict[str, None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    sizes: list[str] = field(default_factory=list)
    lengths: dict[str, None] = field(default_factory=dict)


def look(runs: Sequence[RunConfig], runtime: Runtime, root: Path, *, with_sizes: bool = False) -> Preview:
    """Return what can be told about runs before their training; with the sizes of their models if asked for."""
    found = Preview()
    facts: dict[str, tuple[plugins.DatasetFacts, model_check.Shapes | None] | None] = {}
    checked: set[str] = set()
    for run in runs:
        data = config.canonical(data_settings(run))
        if data not in facts:
            try:
                facts[data] = _facts(run, root)
            except (EverstepError, OSError) as error:
                facts[data] = None
                found.problems[str(error)] = None
        if (told := facts[data]) is None:
            continue
        known, shapes = told
        values = {name: getattr(run, name) for name in type(run).model_fields}
        problems = [f"{dotted(path)}: {what}" for path, what in data_problems(values, known)]
        found.problems.update(dict.fromkeys(problems))
        if not problems and (samples := training_samples(run.data, known)) is not None:
            found.lengths[_length(run, samples)] = None
        parts = (run.model, run.optimizer, run.training)
        key = config.canonical([data, *(part.model_dump(mode="json") for part in parts)])
        if key not in checked and not problems:
            checked.add(key)
            if len(checked) <= MOST_MODELS:
                processes = runtime.nproc * runtime.nodes
                _check_model(run, shapes, known.inputs, processes, found, with_sizes=with_sizes)
                _check_init(run, shapes, found, root)
                for what, is_certain in metric_check.problems(run, shapes, known.inputs):
                    _add_metric_problem(found, what, is_certain=is_certain)
            else:
                found.notes[f"more than {MOST_MODELS} models: the others are checked when their training starts"] = None
    return found


@dataclass(frozen=True)
class Cost:
    """The cost of a run: training samples, optimizer steps and sizes of its model; None if that is not known yet."""

    samples: int | None
    steps: int | None
    sizes: model_check.Sizes | None


def costs(runs: Sequence[RunConfig], runtime: Runtime, root: Path) -> list[Cost]:
    """Return the cost of each run. Raises UserError if its data cannot be read, or its model does not fit the data."""
    facts: dict[str, tuple[plugins.DatasetFacts, model_check.Shapes | None]] = {}
    sizes: dict[str, model_check.Sizes | None] = {}
    found = []
    for run in runs:
        data = config.canonical(data_settings(run))
        if data not in facts:
            facts[data] = _facts(run, root)
        known, shapes = facts[data]
        key = config.canonical(
            [data, *(part.model_dump(mode="json") for part in (run.model, run.optimizer, run.training))]
        )
        if key not in sizes:
            sizes[key] = _sizes_of(run, shapes, runtime.nproc * runtime.nodes, with_step=True)
        samples = training_samples(run.data, known)
        steps = None if samples is None else Length.of(run.training, samples // run.training.batch_size).total
        found.append(Cost(samples, steps, sizes[key]))
    return found


def _facts(run: RunConfig, root: Path) -> tuple[plugins.DatasetFacts, model_check.Shapes | None]:
    """Return the facts about the run's data, from its manifest if it is prepared, and the shapes for its model."""
    known = plugins.facts_in_headers(run.data.name, run.data.params, root)
    if (manifest := prepared.manifest_path(run.data, root)) is not None:
        known = prepared.completed(known, manifest)
    elif run.data.min_class_count > 1:  # rare classes are left out or merged
        known = replace(known, classes=None, samples=None)
    return known, model_check.shapes_of(run, known, manifest)


def _length(run: RunConfig, samples: int) -> str:
    length = Length.of(run.training, samples // run.training.batch_size)
    return (
        f"training on {count(samples, 'sample')} in batches of {run.training.batch_size}: "
        f"{count(length.steps_per_epoch, 'step')} per epoch; {count(length.total, 'step')} and"
        f" {count(length.validations, 'validation')} in all"
    )


def is_own(name: str) -> bool:
    """Return True if a model's code is not in this package."""
    return "." in name or ":" in name


def is_built(model: config.Model) -> bool:
    """Return True if a model is built before its training: it is the user's, read from files, or may be too large."""
    return is_own(model.name) or _has_files(model) or _largest(model.params) > LARGE


def _has_files(model: config.Model) -> bool:
    return bool(plugins.named_files("models", model.name, model.params))


def _largest(value: Any) -> int:
    """Return the largest whole number in a value, at any depth."""
    if isinstance(value, int):
        return value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return max(map(_largest, inner), default=0)


def _check_model(
    run: RunConfig,
    shapes: model_check.Shapes | None,
    inputs: str | None,
    processes: int,
    found: Preview,
    *,
    with_sizes: bool,
) -> None:
    """Add the problems, notes and sizes of the run's model."""
    try:
        if with_sizes or is_built(run.model) or run.training.memory_format != "contiguous":
            told = list(_sizes(run, shapes, processes, with_step=with_sizes))
            found.sizes += told if with_sizes else []
            if not told:
                is_shipped = not (is_own(run.model.name) or _has_files(run.model))
                if is_shipped:
                    model_check.check_size(run, shapes, processes)
                why = "" if shapes is not None and shapes.inputs else ", which is not prepared yet"
                if with_sizes or not is_shipped:
                    what = f"only the training can tell whether {run.model.name} fits the data{why}"
                    found.notes[f"model.name: {what}"] = None
        if _may_get_a_single_value(run, processes):
            note = model_check.single_value_note(run, shapes, inputs, processes)
            found.notes.update({note: None} if note else {})
    except ConfigError as error:
        found.problems[str(error)] = None


def _add_metric_problem(found: Preview, what: str, *, is_certain: bool) -> None:
    if is_certain:
        found.problems[what] = None
    else:
        found.notes[f"{what}; this was with made-up samples: only the training can tell about those of the data"] = None


def _check_init(run: RunConfig, shapes: model_check.Shapes | None, found: Preview, root: Path) -> None:
    try:
        if (note := init_check.note(run, shapes, root)) is not None:
            found.notes[note] = None
    except (EverstepError, OSError) as error:
        found.problems[str(error)] = None


def _sizes(run: RunConfig, shapes: model_check.Shapes | None, processes: int, *, with_step: bool) -> Iterator[str]:
    """Yield the line with the sizes of the run's model, unless shapes of the data decide them that are not known.

    With ``with_step`` they are those of all that a training step of one's own trains and keeps.
    """
    sizes = _sizes_of(run, shapes, processes, with_step=with_step)
    if sizes is not None and shapes is not None:
        what = f"model {run.model.name} {config.canonical(run.model.params)}"
        if with_step and run.training.step is not None and sizes.lacking is None:
            what += f" and all else of {run.training.step}"
        classes = "" if shapes.outputs else f" for {model_check.ANY_OUTPUTS} classes, whose number is not known yet"
        yield f"{what}{classes}: {sizes}"


def _sizes_of(
    run: RunConfig, shapes: model_check.Shapes | None, processes: int, *, with_step: bool
) -> model_check.Sizes | None:
    """Return the sizes of the run's model, as for `_sizes`; None if they are not known."""
    if shapes is None or not shapes.inputs:
        return None
    sizes = model_check.check(run, shapes, processes)
    if sizes is None or not with_step or run.training.step is None:
        return sizes
    return step_check.sizes(run, shapes.spec, processes) or replace(sizes, lacking=run.training.step)


def _may_get_a_single_value(run: RunConfig, processes: int) -> bool:
    """Return True if a process computes one sample at a time with a model that may have batch norm."""
    if run.training.batch_size // (processes * run.training.accumulation_steps) != 1:
        return False
    if is_own(run.model.name):
        return True
    # a model of this package without normalisation: no need to import torch
    texts = plugins.code(plugins.load("models", run.model.name)).texts
    return any("Norm" in text for text in texts.values())
