"""Runs or experiments side by side, as `everstep compare` shows them."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib.arguments import PATH, check_type, path_of
from workflow_lib.errors import ConfigError
from workflow_lib.interactive.experiment import Experiment
from workflow_lib.interactive.shown import as_html
from workflow_lib.interactive.trained import TrainedRun
from workflow_lib.results.layout import RESULTS
from workflow_lib.store.layout import WORK

if TYPE_CHECKING:
    import pandas

    from workflow_lib.comparison import Comparison


def compare(*subjects: str | Path | TrainedRun | Experiment) -> ComparedRuns:
    """Return the comparison of two or more runs or experiments, each with the first.

    A run is itself, its id, or its folder; an experiment, which stands for its best run, is itself, its name or its
    file. Raises UserError if one of them is not found or not evaluated, or if their tasks differ.
    """
    from workflow_lib import comparison

    if len(subjects) < 2:
        raise ConfigError("compare: name at least two runs or experiments")
    for subject in subjects:
        allowed = "runs and experiments, and their names and paths"
        check_type("compare", subject, (*PATH, TrainedRun, Experiment), allowed)
    found = []
    for subject in subjects:
        if isinstance(subject, TrainedRun):
            found.append(replace(comparison.find(str(subject.folder), RESULTS, WORK), name=subject.name))
        else:
            named = subject.name if isinstance(subject, Experiment) else str(subject)
            found.append(comparison.find(named, RESULTS, WORK))
    return ComparedRuns(comparison.compare(found))


class ComparedRuns:
    """Runs compared with the first of them; `compare` returns it."""

    def __init__(self, found: Comparison) -> None:
        self._found = found

    @cached_property
    def settings(self) -> pandas.DataFrame:
        """The settings that differ, a row for each, with a column for each run; None where a run has none."""
        import pandas

        index = pandas.Index([*self._found.settings], name="setting")
        return pandas.DataFrame([*self._found.settings.values()], index=index, columns=self._names(), dtype=object)

    @cached_property
    def metrics(self) -> pandas.DataFrame:
        """A row for each metric and run: its value and interval on the test split, and its difference from the first.

        The difference has its own interval, from resamples of the test samples that both runs share;
        `is_more_than_noise` is True if that interval does not contain 0, and None if there is none. `note` says why.
        """
        import pandas

        notes = ["", *self._found.reasons]
        if self._found.views:
            told = [f"evaluated with {views}" for views in self._found.views]
            notes = ["; ".join(filter(None, pair)) for pair in zip(notes, told, strict=True)]
        rows = [
            {
                "metric": metric.label,
                "run": name,
                **{column: value.get(column) for column in ("value", "low", "high")},
                "difference": difference and difference.value,
                "difference_low": difference and difference.low,
                "difference_high": difference and difference.high,
                "is_more_than_noise": difference and difference.is_more_than_noise,
                "note": note,
            }
            for metric in self._found.metrics
            for name, value, difference, note in zip(
                self._names(), metric.values, metric.differences, notes, strict=True
            )
        ]
        numbers = [name for name in rows[0] if name.endswith(("value", "low", "high", "difference"))]
        return pandas.DataFrame(rows).astype(dict.fromkeys(numbers, float)).set_index(["metric", "run"])

    def write_page(self, path: str | Path) -> Path:
        """Write the comparison as an HTML page that loads nothing, and return its path."""
        from workflow_lib import comparison

        output = path_of("path", path, "the path of a file to write")
        if output.is_dir():
            raise ConfigError(f"{output}: is a folder; allowed: the path of a file to write")
        comparison.write_page(self._found, output)
        return output

    def _names(self) -> list[str]:
        return [subject.folder.name for subject in self._found.subjects]

    def __repr__(self) -> str:
        from workflow_lib import comparison

        return comparison.shown(self._found)

    def _repr_html_(self) -> str:
        from workflow_lib.comparison import text

        found = self._found
        how = [text.HOW] if any(not reason for reason in found.reasons) else []
        settings = [text.settings_rows(found)] if found.settings else [text.SAME]
        views = [text.VIEWS, *filter(None, found.views)] if found.views else []
        return (
            as_html("Runs", *text.legend(found), *views)
            + as_html("Settings that differ", *settings)
            + as_html("Metrics on the test split", text.metric_rows(found), *how, *text.reasons(found))
        )
