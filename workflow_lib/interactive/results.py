"""The results of an experiment as data frames, read from the files of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import config, plan
from workflow_lib.arguments import check_type
from workflow_lib.config.identity import canonical
from workflow_lib.errors import ConfigError, UserError
from workflow_lib.files import read_json
from workflow_lib.interactive import project
from workflow_lib.interactive.shown import as_html, as_text
from workflow_lib.interactive.tables import CURVE, curve, frame
from workflow_lib.interactive.trained import TrainedRun
from workflow_lib.results import layout as results_layout
from workflow_lib.results.configurations import group
from workflow_lib.results.read_runs import TUNED, Unfinished, load_results, unfinished
from workflow_lib.text import count, decimal, duration

if TYPE_CHECKING:
    import pandas


class Results:
    """The runs of an experiment with their results, best run first, as they were when this was made.

    `Experiment.run` and `Experiment.results` return it. Its length is the number of runs with a result; iterating
    yields them, and `results[name]` is one of them, also by the first digits of its digest, as is `results[0]`, by its
    place.
    """

    def __init__(self, experiment: config.Experiment, folder: Path, work: Path) -> None:
        self._folder, self._project = folder, Path.cwd()
        names = [run.id for run in plan.expand(experiment)]
        self._without = unfinished(folder, names, work)
        if experiment.tune is not None:
            self._without += _unfinished_study(experiment, folder, work)
            names.append(TUNED)
        missing = {run.name for run in self._without}
        self._found = load_results(experiment, folder, [name for name in names if name not in missing], work)

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[TrainedRun]:
        return (self._run(found.name) for found in self._found)

    def __getitem__(self, name: str | int) -> TrainedRun:
        check_type("results", name, (str, Integral), "the name of a run, the first digits of its digest, or its place")
        if not isinstance(name, str):
            return self._run(self._found[name].name)
        digits = name.rpartition("-")[2]
        named = [run.name for run in self._found if run.name == name] or [
            run.name for run in self._found if len(digits) >= 4 and str(run.train["digest"]).startswith(digits)
        ]
        if len(named) == 1:
            return self._run(named[0])
        for run in self._without:
            if run.name == name:
                raise UserError(f"{name}: {run.state}: {run.reason}")
        there = ", ".join(run.name for run in self._found[:5]) or "none"
        what = f"{len(named)} runs begin with these digits" if named else "no run with a result has this name"
        raise ConfigError(f"{name}: {what}; there are: {there}")

    def _run(self, name: str) -> TrainedRun:
        project.check(self._project, self._folder.name)
        return TrainedRun(results_layout.run_dir(self._folder, name))

    @property
    def best(self) -> TrainedRun:
        """The best run by the metric that selects, on the validation split.

        If runs repeat a configuration with other seeds or folds, the most typical run of the best configuration. Raises
        UserError if no run has a result.
        """
        if not self._found:
            reasons = "".join(f"\n{run.name}: {run.state}: {run.reason}" for run in self._without[:5])
            raise UserError(f"{self._folder}: no run has a result yet{reasons}")
        return self._run(self._found[0].name)

    @cached_property
    def runs(self) -> pandas.DataFrame:
        """A row for each run, by name, best run first: the table `runs.csv` of the report.

        It has the settings that differ, each metric of the test split with the bounds of its interval (`accuracy`,
        `accuracy_low`, `accuracy_high`), and the cost. A run without a result has a `state` and a `reason`, and comes
        last.
        """
        rows = [*(run.row() for run in self._found), *(run.row() for run in self._without)]
        measured = {name for run in self._found for name in run.metrics}
        numbers = [f"{name}{bound}" for name in measured for bound in ("", "_low", "_high")]
        return frame(rows, ["name"], numbers=["select_value", *numbers], index="name")

    @cached_property
    def configurations(self) -> pandas.DataFrame:
        """A row for each configuration, best first: mean, deviation and interval over its seeds or folds."""
        rows = [configuration.row() for configuration in group(self._found)]
        spread = {name for row in rows for name in row if f"{name}_deviation" in row}
        numbers = [f"{name}{of}" for name in spread for of in ("", "_deviation", "_low", "_high")]
        return frame(rows, ["runs", "typical_run"] if not rows else [], numbers=numbers)

    @cached_property
    def history(self) -> pandas.DataFrame:
        """The learning curves of all runs with a result: a row for each validation, with the name of its run first."""
        rows = [{"run": run.name, **row} for run in self._found for row in run.history]
        return curve(rows, ["run", *CURVE])

    @cached_property
    def changes(self) -> dict[str, list[str]]:
        """Lines on the code and data that have changed since the training, by the name of the run."""
        return {run.name: run.changes for run in self if run.changes}

    def __repr__(self) -> str:
        return as_text(self._title(), self._rows(), [*self._cautions(), *self._changed()])

    def _repr_html_(self) -> str:
        return as_html(self._title(), self._rows(), *self._cautions(), *self._changed())

    def _cautions(self) -> list[str]:
        return [*dict.fromkeys(run.caution for run in self._found if run.caution)]

    def _changed(self) -> list[str]:
        """Return each line on changes once, with the runs that it is about."""
        runs: dict[str, list[str]] = {}
        for name, lines in self.changes.items():
            for line in lines:
                runs.setdefault(line, []).append(name)
        return [f"{names[0] if len(names) == 1 else count(len(names), 'run')}: {line}" for line, names in runs.items()]

    def _title(self) -> str:
        total = len(self._found) + len(self._without)
        return f"{self._folder.name}: {count(len(self._found), 'run')} of {total} with a result, best first"

    def _rows(self) -> list[list[str]]:
        """Return the headings and a row for each run, of the values that are looked at first."""
        from workflow_lib.comparison.text import value_of

        rows: list[dict[str, str]] = []
        for run in self._found:
            measured = {name: value_of(run.evaluation["metrics"].get(name, {})) for name in run.metrics}
            settings = {name: "-" if value is None else canonical(value) for name, value in run.settings.items()}
            chosen = {run.select_metric: decimal(run.best()[0]), "at": run.best_place}
            rows.append({"run": run.name, **settings, **chosen, **measured, "time": duration(run.train["seconds"])})
        rows += [{"run": run.name, "state": run.state, "reason": run.reason} for run in self._without]
        names = [*dict.fromkeys(name for row in rows for name in row)]
        return [names, *([row.get(name, "") for name in names] for row in rows)]


def _unfinished_study(experiment: config.Experiment, folder: Path, work: Path) -> list[Unfinished]:
    """Return the run `tuned` if it has no result, or has that of another study with this name."""
    best = results_layout.best_file(results_layout.study_dir(folder, plan.study_id(experiment)))
    trained = results_layout.run_dir(folder, TUNED) / results_layout.TRAIN
    if best.exists() and trained.exists():
        if read_json(best, "run")["run"]["digest"] != read_json(trained, "digest")["digest"]:
            return [Unfinished(TUNED, "not trained", "there is only the result of another study")]
    elif trained.exists():
        return [Unfinished(TUNED, "not trained", "the study has not ended")]
    return unfinished(folder, [TUNED], work)
