"""Grids that are built in code: their points, their files, and the names of their runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workflow_lib
from workflow_lib import ConfigError, ParameterGrid, config, plan, start

GRID = {"optimizer.lr": [0.1, 0.01], "model.params.hidden": [[8], [16]]}
MLP = {"name": "base", "model": {"name": "mlp"}}


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start.new_project(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")


def test_the_points_are_the_runs_of_the_written_file_in_order() -> None:
    grid = ParameterGrid(GRID)
    created = grid.create(MLP, "sizes")
    runs = plan.expand(config.load([Path("config/sizes.yaml")]))
    assert [run.swept for run in runs] == [*grid]
    assert [run.id for run in runs] == [*created.plan()]
    assert len(grid) == len(created.plan()) == 4
    assert "optimizer.lr: [0.1, 0.01]" in Path("config/sizes.yaml").read_text()


def test_several_grids_are_joined_without_repetitions() -> None:
    several = ParameterGrid(GRID, {"optimizer.lr": [0.1, 0.5], "model.params.hidden": [[8]]}, {"model.name": ["cnn"]})
    points = [*several]
    assert len(points) == len(several) == 6
    assert points[4:] == [{"model.params.hidden": [8], "optimizer.lr": 0.5}, {"model.name": "cnn"}]
    assert [run.swept for run in plan.expand(_config(several, "several"))] == points
    assert [*several.points.loc[5]] == [None, None, "cnn"]


def _config(grid: ParameterGrid, name: str) -> config.Experiment:
    grid.create(MLP, name)
    return config.load([Path("config", f"{name}.yaml")])


def test_a_name_leads_to_its_values_and_back() -> None:
    planned = ParameterGrid(GRID).create(MLP, "sizes").plan()
    for name in planned:
        values = planned.values_of(name)
        assert planned.name_of(values) == name
        assert planned.values_of(planned.runs.loc[name, "digest"][:6]) == values
        assert planned.settings_of(name).items() >= values.items()
    assert planned.name_of({"optimizer.lr": np.float64(0.01), "model.params.hidden": (16,)}) == [*planned][3]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer.lr": 0.1}, "^2 runs have these values"),
        ({"optimizer.lr": 0.2}, "^no run has these values"),
        ({"optimizer.rate": 0.1}, "^no run has these values"),
    ],
)
def test_values_of_no_run_or_of_several_are_told(values: dict[str, Any], message: str) -> None:
    planned = ParameterGrid(GRID).create(MLP, "sizes").plan()
    with pytest.raises(ConfigError, match=message):
        planned.name_of(values)


def test_a_name_that_no_run_has_is_told() -> None:
    planned = ParameterGrid(GRID).create(MLP, "sizes").plan()
    with pytest.raises(ConfigError, match="^sizes-0123456789ab: no run has this name; the runs are: sizes-"):
        planned.values_of("sizes-0123456789ab")


def test_a_grid_extends_a_file_and_keeps_its_seeds() -> None:
    Path("config/base.yaml").write_text("name: base\nmodel: {name: mlp}\nsweep: {seeds: 2}\n")
    created = ParameterGrid(GRID).create("config/base.yaml", "seeded")
    assert len(created.plan()) == 8
    assert "extends: base.yaml" in Path("config/seeded.yaml").read_text()


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ([], "give at least one grid"),
        ([{}], "allowed: a mapping with the values of at least one setting"),
        ([{"optimizer.lr": []}], r"^optimizer.lr: is \[\]; allowed: a list with at least one value"),
        ([{"optimizer.lr": 0.1}], r"^optimizer.lr: is 0.1; allowed: a list"),
        ([{"optimizer": {"lr": [0.1]}}], "^optimizer: give nested names with dots, as in `optimizer.lr`"),
    ],
)
def test_a_mistake_in_a_grid_has_one_message(grids: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ParameterGrid(*grids)


def test_a_grid_does_not_mix_with_a_sweep_of_the_base() -> None:
    Path("config/base.yaml").write_text("name: base\nmodel: {name: mlp}\nsweep: {grid: {seed: [0, 1]}}\n")
    with pytest.raises(ConfigError, match="^sweep.grid: the experiment to start from has a sweep"):
        ParameterGrid(GRID).create("config/base.yaml", "mixed")
    with pytest.raises(ConfigError, match="optimizer.rate"):
        ParameterGrid({"optimizer.rate": [1]}).create(MLP, "wrong").plan()
    assert not Path("config/mixed.yaml").exists()


def test_a_grid_is_shown_as_a_table() -> None:
    grid = ParameterGrid(GRID)
    assert repr(grid).splitlines()[:4] == [
        "ParameterGrid of 4 points",
        "",
        "   model.params.hidden  optimizer.lr",
        "0  [8]                  0.1",
    ]
    assert ">0.01</td>" in grid._repr_html_()
    assert repr(workflow_lib.load(MLP)).startswith("Experiment(base, 1 run, data digits, model mlp")
