"""The runs of an experiment before they are trained: names, digests, settings and cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import config, plan
from workflow_lib.arguments import check_type
from workflow_lib.config.mapping import plain
from workflow_lib.errors import ConfigError
from workflow_lib.housekeeping import status
from workflow_lib.interactive import project
from workflow_lib.interactive.shown import as_html, as_text
from workflow_lib.plan import preview
from workflow_lib.results import layout as results_layout
from workflow_lib.results.layout import RESULTS
from workflow_lib.store.layout import WORK
from workflow_lib.text import flatten

if TYPE_CHECKING:
    import pandas

    from workflow_lib.plan.model_check import Sizes


class Plan:
    """The runs of an experiment, in order; `Experiment.plan` returns it. Its length is their number.

    Iterating yields their names, `<experiment>-<values>-<digest>`.
    """

    def __init__(self, experiment: config.Experiment) -> None:
        self._config, self._folder = experiment, Path.cwd()
        self._runs = {run.id: run for run in plan.expand(experiment)}

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    @cached_property
    def runs(self) -> pandas.DataFrame:
        """A row for each run, by name: the value of each swept setting, the data and the digest of all settings."""
        import pandas

        swept = dict.fromkeys(name for run in self._runs.values() for name in run.swept)
        rows = [
            {**{name: run.swept.get(name) for name in swept}, "data": run.data_id, "digest": run.digest}
            for run in self._runs.values()
        ]
        return pandas.DataFrame(rows, index=pandas.Index([*self._runs], name="run"))

    @property
    def cost(self) -> pandas.DataFrame:
        """A row for each run, by name: its state, what its training takes, and what it has used so far.

        Columns are the number of training samples and of optimizer steps, of the parameters of its model, and the
        estimated memory on each device in MB; NA if it is not known, as before the data is prepared. `used_s` is the
        time that all attempts have taken so far. Raises ConfigError if a model does not fit its data.
        """
        import pandas

        states = {row["digest"]: row for row in reversed(self.status())}
        costs = preview.costs([run.config for run in self._runs.values()], self._config.runtime, Path.cwd())
        rows = [
            {
                "state": states[run.digest]["state"],
                "samples": cost.samples,
                "steps": cost.steps,
                "parameters": None if cost.sizes is None or cost.sizes.lacking else cost.sizes.parameters,
                "memory_mb": _memory_mb(cost.sizes),
                "used_s": states[run.digest]["account"]["used_s"],
            }
            for run, cost in zip(self._runs.values(), costs, strict=True)
        ]
        table = pandas.DataFrame(rows, index=pandas.Index([*self._runs], name="run"))
        return table.astype(dict.fromkeys(("samples", "steps", "parameters"), "Int64") | {"memory_mb": "Float64"})

    def values_of(self, name: str) -> dict[str, Any]:
        """Return the values that the sweep gives a run, by dotted name; `name` may be the digits of its digest."""
        return dict(self._runs[self._named(name)].swept)

    def settings_of(self, name: str) -> dict[str, Any]:
        """Return all settings of a run by dotted name; `name` may be the first digits of its digest."""
        return flatten(self._runs[self._named(name)].config.model_dump(mode="json"))

    def name_of(self, values: Mapping[str, Any] | pandas.Series[Any]) -> str:
        """Return the name of the run to which the sweep gives these values, by dotted name, or else that has them.

        Raises ConfigError if no run has them, or several have.
        """
        given = values.to_dict() if hasattr(values, "to_dict") else values  # a row of a table
        check_type("values", given, Mapping, "a mapping of dotted names to values")
        wanted = plain(given)
        found = [name for name, run in self._runs.items() if wanted.items() <= run.swept.items()]
        if not found:  # other settings than the swept ones
            found = [name for name in self._runs if wanted.items() <= self.settings_of(name).items()]
        if len(found) == 1:
            return found[0]
        who = f"{len(found)} runs have" if found else "no run has"
        raise ConfigError(f"{who} these values: {config.canonical(wanted)}; the runs are: {self._listing()}")

    def status(self) -> list[status.Row]:
        """Return the rows of `everstep status --json` for the runs, in order, then for the trials of the study."""
        project.check(self._folder, self._config.name)
        rows = status.runs(WORK, RESULTS)
        begun: dict[str, list[status.Row]] = {}
        for row in rows:
            begun.setdefault(row["digest"], []).append(row)
        found = [
            row for run in self._runs.values() for row in begun.get(run.digest, [status.planned(run.digest, run.id)])
        ]
        trials = status.named_in(results_layout.pointers(self._study())) if self._config.tune else {}
        return found + [row | {"run": name} for digest, name in trials.items() for row in begun.get(digest, [])]

    def _study(self) -> Path:
        return results_layout.study_dir(RESULTS / self._config.name, plan.study_id(self._config))

    def _named(self, ref: str) -> str:
        check_type("name", ref, str, "the name of a run, or the first digits of its digest")
        if ref in self._runs:
            return ref
        digits = ref.rpartition("-")[2]
        found = [name for name, run in self._runs.items() if len(digits) >= 4 and run.digest.startswith(digits)]
        if len(found) != 1:
            who = f"{len(found)} runs begin with these digits" if found else "no run has this name"
            raise ConfigError(f"{ref}: {who}; the runs are: {self._listing()}")
        return found[0]

    def _listing(self) -> str:
        names = [*self._runs]
        return ", ".join([*names[:5], *([f"and {len(names) - 5:,} more"] if len(names) > 5 else [])])

    def __repr__(self) -> str:
        title, rows, notes = plan.parts(self._config)
        return "\n".join([as_text(title, rows), *notes])

    def _repr_html_(self) -> str:
        title, rows, notes = plan.parts(self._config)
        return as_html(title, rows, *filter(None, notes))


def _memory_mb(sizes: Sizes | None) -> float | None:
    """Return the memory of a training on each device; None if a part of it is not known."""
    if sizes is None or sizes.lacking or sizes.optimizer is None or sizes.activations is None:
        return None
    return (sizes.state + sizes.activations) / 1e6
