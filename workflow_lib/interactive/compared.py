"""Runs or experiments side by side, as `everstep compare` shows them."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib.errors import ConfigError
from workflow_lib.interactive.trained import TrainedRun
from workflow_lib.results.layout import RESULTS
from workflow_lib.store.layout import WORK

if TYPE_CHECKING:
    import pandas

    from workflow_lib.comparison import Comparison


def compare(*subjects: str | Path | TrainedRun) -> ComparedRuns:
    """Return the comparison of two or more runs or experiments, each with the first.

    A run is itself, its id, or its folder; an experiment, which stands for its best run, is its name or its file.
    Raises UserError if one of them is not found or not evaluated, or if their tasks differ.
    """
    from workflow_lib import comparison

    if len(subjects) < 2:
        raise ConfigError("compare: name at least two runs or experiments")
    found = []
    for subject in subjects:
        if isinstance(subject, TrainedRun):
            found.append(replace(comparison.find(str(subject.folder), RESULTS, WORK), name=subject.name))
        else:
            found.append(comparison.find(str(subject), RESULTS, WORK))
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

        comparison.write_page(self._found, Path(path))
        return Path(path)

    def _names(self) -> list[str]:
        return [subject.folder.name for subject in self._found.subjects]

    def __repr__(self) -> str:
        from workflow_lib import comparison

        return comparison.shown(self._found)

    def _repr_html_(self) -> str:
        from workflow_lib.comparison.text import HOW
        from workflow_lib.interactive.shown import titled

        how = [HOW] if any(not reason for reason in self._found.reasons) else []
        return titled("Settings that differ", self.settings) + titled("Metrics on the test split", self.metrics, *how)
