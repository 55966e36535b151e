"""Checks of runs before training: of settings against the headers of data files, and of batch norm.

torch is imported only for runs that compute one sample at a time, from which batch norm may have no variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import config, plugins
from workflow_lib.config.experiment import Runtime
from workflow_lib.config.run_checks import data_problems
from workflow_lib.config.yaml import dotted
from workflow_lib.errors import ConfigError, EverstepError
from workflow_lib.plan import Run, RunConfig, data_settings

if TYPE_CHECKING:
    from workflow_lib.data import ModelSpec

ANY_FEATURES = 8  # width of a table that is not read; batch norm needs two rows of any width
ANY_SIZE = 64  # height and width of images that are not read
ONLY_THE_TRAINING = (
    "each process computes one sample at a time (training.batch_size, training.accumulation_steps, runtime.nproc): "
    "only the training can tell whether the model's batch norm gets more than one value of each channel"
)


def look(runs: Sequence[Run], runtime: Runtime, root: Path) -> tuple[list[str], list[str]]:
    """Return the problems of the runs, and notes on checks that only training can make; without duplicates."""
    problems: dict[str, None] = {}
    notes: dict[str, None] = {}
    facts: dict[str, plugins.DatasetFacts | None] = {}
    asked = set()
    for run in runs:
        data = config.canonical(data_settings(run.config))
        if data not in facts:
            try:
                facts[data] = plugins.facts_in_headers(run.config.data.name, run.config.data.params, root)
            except (EverstepError, OSError) as error:
                facts[data] = None
                problems[str(error)] = None
        if (known := facts[data]) is None:
            continue
        values = {name: getattr(run.config, name) for name in type(run.config).model_fields}
        problems.update((f"{dotted(path)}: {what}", None) for path, what in data_problems(values, known))
        training, processes = run.config.training, runtime.nproc * runtime.nodes
        if training.batch_size // (processes * training.accumulation_steps) == 1:
            key = config.canonical([data, run.config.model.model_dump(mode="json")])
            if key in asked:
                continue
            asked.add(key)
            try:
                notes.update(dict.fromkeys(_single_value(run.config, known, processes)))
            except ConfigError as error:
                problems[str(error)] = None
    return list(problems), list(notes)


def _single_value(run: RunConfig, known: plugins.DatasetFacts, processes: int) -> list[str]:
    """Raise ConfigError if the model cannot be trained on one sample at a time; return a note if that is unknown."""
    plugin = plugins.load("models", run.model.name)
    if "." not in run.model.name and not any("Norm" in text for text in plugins.code(plugin).texts.values()):
        return []  # a model of this package without normalisation: no need to import torch
    spec, is_known = _spec(run, known)
    if spec is None:
        return [] if known.inputs else [ONLY_THE_TRAINING]
    import torch

    from workflow_lib.runtime.torch_internals import is_batch_norm
    from workflow_lib.training.model import explain_single_value

    try:
        with torch.device("meta"):  # computes shapes only
            model = plugin.build(plugin.Params.model_validate(run.model.params), spec).train()
            if not is_known:
                return [ONLY_THE_TRAINING] if any(map(is_batch_norm, model.modules())) else []
            model(torch.zeros((1, *spec.input_shape)))
    except ValueError as error:
        explain_single_value(error, run.training, processes)
    except Exception:  # a model that needs real numbers fails on the meta device
        return [ONLY_THE_TRAINING]
    return []


def _spec(run: RunConfig, known: plugins.DatasetFacts) -> tuple[ModelSpec | None, bool]:
    """Return the shapes of the data, and True if batch norm gets as many values per channel as in training."""
    from workflow_lib.data import ModelSpec

    task = plugins.task(run.data.name, run.data.params)
    outputs = 1 if plugins.task_facts(task).targets == "numbers" else known.classes or 2
    if known.inputs == "images":
        is_known = known.size is not None and known.channels is not None
        height, width = known.size or (ANY_SIZE, ANY_SIZE)
        return ModelSpec((known.channels or 3, height, width), outputs, task), is_known
    if known.inputs == "tables":
        return ModelSpec((ANY_FEATURES,), outputs, task), True
    return None, False
