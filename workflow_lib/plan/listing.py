"""The text that `everstep plan` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workflow_lib import config, plugins
from workflow_lib.config import sweep
from workflow_lib.config.experiment import Experiment, Tune
from workflow_lib.config.identity import canonical
from workflow_lib.errors import EverstepError
from workflow_lib.plan import packing
from workflow_lib.plan.expansion import Run, expand
from workflow_lib.plan.sources import trained_first
from workflow_lib.plan.study import all_configs, study_id, study_metric
from workflow_lib.store.layout import WORK
from workflow_lib.text import aligned, count


def table(experiment: Experiment) -> str:
    """Return a line for each run, with its id and the values that the sweep gives it, then the study."""
    first, rows, notes = parts(experiment)
    return "\n".join([first, "", *aligned(rows), *notes])


def parts(experiment: Experiment) -> tuple[str, list[list[str]], list[str]]:
    """Return the first line of the table, its headings and rows, and the lines below."""
    runs = expand(experiment)
    data = {run.data_id for run in runs}
    names = list(dict.fromkeys(name for run in runs for name in run.swept))
    columns = names if len(data) == 1 else [*names, "data"]
    rows = [[run.id, *(_cell(run.swept, name) for name in names), run.data_id][: len(columns) + 1] for run in runs]
    total = sum(1 for _ in sweep.points(experiment.sweep, experiment.seed))
    head = f"{experiment.name}: {count(len(runs), 'run')}, {count(len(data), 'data set')}"
    repeated = [f"{number} {name}" for name in ("folds", "seeds") if (number := getattr(experiment.sweep, name))]
    if repeated:
        head += f" ({' x '.join([count(_configurations(runs), 'configuration'), *repeated])})"
    if total > len(runs):
        head += f" ({count(total, 'point')} of the sweep; those with equal settings are one run)"
    lines: list[str] = []
    first = trained_first(all_configs(experiment, runs), {run.id: run for run in runs}, WORK)
    if first:
        lines += ["", "trained first, since runs use their weights:", *(f"  {name}" for name in first)]
    if experiment.tune is not None:
        lines += ["", *_study_lines(experiment, experiment.tune)]
    if packing.is_wanted(experiment):
        lines += ["", packing.words(experiment, runs, packing.obstacle(experiment, is_cluster=False))]
    return head, [["run", *columns], *rows], lines


def _configurations(runs: Sequence[Run]) -> int:
    """Return the number of points that differ in other settings than seed and fold."""
    own = ({name: value for name, value in run.swept.items() if name not in sweep.REPEATED} for run in runs)
    return len({canonical(values) for values in own})


def columns(experiment: Experiment) -> tuple[list[str], list[str]]:
    """Return a line for each column of the tables that the experiment reads, and why tables are rejected."""
    data = {run.data_id: run.config.data for run in expand(experiment)}
    tables: dict[str, list[str]] = {}  # folds and splits of a table have the same columns
    for name, section in data.items():
        tables.setdefault(canonical([section.name, section.params]), []).append(name)
    lines: list[str] = []
    problems: dict[str, None] = {}
    for first, *others in tables.values():
        section = data[first]
        try:
            descriptions = plugins.column_descriptions(section.name, section.params, Path.cwd())
        except (EverstepError, OSError) as error:
            problems[str(error)] = None
            continue
        if descriptions:
            more = f" and {count(len(others), 'other data set')} of the same table" if others else ""
            lines += ["", f"columns of {first}{more}:", *(f"  {description}" for description in descriptions)]
    return lines, list(problems)


def _cell(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return ""
    return values[name] if isinstance(values[name], str) else canonical(values[name])


def _study_lines(experiment: Experiment, tune: Tune) -> list[str]:
    head = (
        f"study {study_id(experiment)}: {count(tune.trials, 'trial')}, {tune.window} at a time,"
        f" for {study_metric(experiment)}; the best is trained as `tuned`"
    )
    rows = [[f"  {name}", canonical(config.identity(space))] for name, space in tune.space.items()]
    rows += [[f"  {name}", f"{canonical(value)} for trials only"] for name, value in tune.set.items()]
    return [head, *aligned(rows)]
