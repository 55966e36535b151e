"""A sweep that is built in code, and written as the `sweep:` of an experiment file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib.arguments import check_type, path_of
from workflow_lib.config import compose, sweep
from workflow_lib.config.experiment import Sweep
from workflow_lib.config.identity import canonical
from workflow_lib.config.mapping import plain
from workflow_lib.errors import ConfigError
from workflow_lib.interactive.experiment import Experiment, load
from workflow_lib.interactive.shown import as_html, as_text
from workflow_lib.text import count

if TYPE_CHECKING:
    import pandas

    from workflow_lib.interactive.results import Results

OWN = ("grid", "zip", "list", "exclude")  # settings of `sweep:` that a grid takes the place of


class ParameterGrid:
    """All combinations of values of settings; of several grids, the points of each, without repetitions.

    Iterating yields the points as mappings of dotted names, in the order of the runs.

    Args:
        grids: for each setting, by its dotted name such as `optimizer.lr`, the list or array of its values

    Raises:
        ConfigError: A grid is empty, or a value cannot be a setting.
    """

    def __init__(self, *grids: Mapping[str, Any]) -> None:
        if not grids:
            raise ConfigError('ParameterGrid(): give at least one grid, such as {"optimizer.lr": [0.001, 0.01]}')
        self._grids = [_axes(grid) for grid in grids]

    def sweep(self) -> dict[str, Any]:
        """Return the `sweep:` of an experiment file: `grid`, or `list` for several grids."""
        if len(self._grids) == 1:
            return {"grid": self._grids[0]}
        points = {canonical(point): point for grid in self._grids for point in sweep.points(Sweep(grid=grid), 0)}
        return {"list": [*points.values()]}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return sweep.points(Sweep.model_validate(self.sweep()), 0)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def points(self) -> pandas.DataFrame:
        """A row for each point, with a column for each setting; None where a point does not have it."""
        import pandas

        points = [*self]
        names = dict.fromkeys(name for point in points for name in point)
        return pandas.DataFrame(
            [[point.get(name) for name in names] for point in points], columns=[*names], dtype=object
        )

    def create(self, base: str | Path | Mapping[str, Any], name: str) -> Experiment:
        """Write an experiment with these runs to `config/<name>.yaml`, and return it.

        Args:
            base: experiment file to start from, which the new one then extends; or a mapping as for `load`
            name: name of the new experiment

        Raises:
            ConfigError: A mistake in the settings, a sweep in `base`, or a file of that name that is not from Python.
        """
        check_type("name", name, str, "the name of the new experiment")
        if not isinstance(base, Mapping):
            base = {"extends": path_of("base", base, "the path of an experiment file, or a mapping")}
        given: dict[str, Any] = plain(base)
        settings = compose.read_mapping(given).values.get("sweep") or {}
        if not isinstance(settings, dict):
            raise ConfigError(f"sweep: is {settings!r}; allowed: a mapping such as {{seeds: 3}}")
        if taken := [key for key in OWN if settings.get(key)]:
            raise ConfigError(
                f"sweep.{taken[0]}: the experiment to start from has a sweep, so there would be other runs than those "
                "of the grid: remove it, or write its settings into the grid"
            )
        experiment = load({**given, "name": name, "sweep": {**(given.get("sweep") or {}), **self.sweep()}})
        experiment.save()
        return experiment

    def __repr__(self) -> str:
        return as_text(self._title(), self._rows())

    def _rows(self) -> list[list[str]]:
        """Return the headings and the points; the first column is the number of the point, as in `points`."""
        points = [*self]
        names = dict.fromkeys(name for point in points for name in point)
        return [
            ["", *names],
            *(
                [str(number), *(canonical(point[name]) if name in point else "" for name in names)]
                for number, point in enumerate(points)
            ),
        ]

    def _title(self) -> str:
        return f"ParameterGrid of {count(len(self), 'point')}"

    def _repr_html_(self) -> str:
        return as_html(self._title(), self._rows())


def _axes(grid: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the values of each setting as lists."""
    if not isinstance(grid, Mapping) or not grid:
        raise ConfigError(f"ParameterGrid: {grid!r}: allowed: a mapping with the values of at least one setting")
    axes: dict[str, list[Any]] = plain(grid)
    for name, values in axes.items():
        if isinstance(values, dict):
            inner = next(iter(values), "...")
            raise ConfigError(f"{name}: give nested names with dots, as in `{name}.{inner}`")
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{name}: is {values!r}; allowed: a list with at least one value")
    return axes


def run_grid(grid: ParameterGrid, base: str | Path | Mapping[str, Any], name: str, profile: str = "local") -> Results:
    """Create the experiment of a grid, run it, and return its results: `grid.create(base, name).run(profile)`."""
    check_type("grid", grid, ParameterGrid, "a ParameterGrid")
    return grid.create(base, name).run(profile)
