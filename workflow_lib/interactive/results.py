"""The results of an experiment as data frames, read from the files of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import config, plan
from workflow_lib.errors import ConfigError, UserError
from workflow_lib.files import read_json
from workflow_lib.interactive import project
from workflow_lib.interactive.trained import TrainedRun
from workflow_lib.results import layout as results_layout
from workflow_lib.results.configurations import group
from workflow_lib.results.read_runs import TUNED, Unfinished, load_results, unfinished
from workflow_lib.text import count

if TYPE_CHECKING:
    import pandas


class Results:
    """The runs of an experiment with their results, best run first, as they were when this was made.

    `Experiment.run` and `Experiment.results` return it. Its length is the number of runs with a result; iterating
    yields them, and `results[name]` is one of them, also by the first digits of its digest.
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

    def __getitem__(self, name: str) -> TrainedRun:
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
        import pandas

        rows = [*(run.row() for run in self._found), *(run.row() for run in self._without)]
        return pandas.DataFrame(rows).set_index("name")

    @cached_property
    def configurations(self) -> pandas.DataFrame:
        """A row for each configuration, best first: mean, deviation and interval over its seeds or folds."""
        import pandas

        return pandas.DataFrame([configuration.row() for configuration in group(self._found)])

    @cached_property
    def history(self) -> pandas.DataFrame:
        """The learning curves of all runs with a result: a row for each validation, with the name of its run first."""
        import pandas

        return pandas.DataFrame([{"run": run.name, **row} for run in self._found for row in run.history])

    @cached_property
    def changes(self) -> dict[str, list[str]]:
        """Lines on the code and data that have changed since the training, by the name of the run."""
        return {run.name: run.changes for run in self if run.changes}

    def __repr__(self) -> str:
        return "\n".join([self._title(), self._short().to_string(max_rows=60), *self._changed()])

    def _repr_html_(self) -> str:
        from workflow_lib.interactive.shown import titled

        cautions = dict.fromkeys(run.caution for run in self._found if run.caution)
        return titled(self._title(), self._short(), *cautions, *self._changed())

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

    def _short(self) -> pandas.DataFrame:
        """Return the columns of the table that are looked at first."""
        names = ["state", "reason"] if self._without else []
        if self._found:
            first = self._found[0]
            measured = [column for name in first.metrics for column in (name, f"{name}_low", f"{name}_high")]
            names = [*first.settings, "select_value", "best_epoch", *measured, "seconds", *names]
        return self.runs[[name for name in names if name in self.runs]].dropna(axis="columns", how="all")


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
