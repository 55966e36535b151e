"""Arguments of wrong types, and the types of data frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

import workflow_lib
from workflow_lib import ConfigError, ParameterGrid, start
from workflow_lib.interactive import trained
from workflow_lib.interactive.tables import curve, frame
from workflow_lib.store.job_process import BEGINS

MINE = {"name": "mine", "model": {"name": "mlp"}}
GRID = ParameterGrid({"optimizer.lr": [0.1, 0.01], "model.params.hidden": [[8], [16]]})


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start.new_project(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "load": (lambda: workflow_lib.load(5), "^load: is a int; allowed: the path of an experiment file, or a mapping$"),
    "load a byte": (lambda: workflow_lib.load("a\0b"), r"^load: 'a\\x00b' is not a path; allowed: "),
    "load nothing": (lambda: workflow_lib.load(""), "^load: '' is not a path; allowed: "),
    "profile": (lambda: workflow_lib.load(MINE).run(None), "^profile: is None; allowed: `local`, `slurm`, or"),
    "arguments": (lambda: workflow_lib.load(MINE).run(arguments="--cores 2"), "^arguments: is a str; allowed: a list"),
    "argument": (lambda: workflow_lib.load(MINE).run(arguments=["--cores", None]), "^arguments: is None; allowed: "),
    "name": (lambda: workflow_lib.load(MINE).plan().values_of(5), "^name: is a int; allowed: the name of a run"),
    "values": (lambda: workflow_lib.load(MINE).plan().name_of([1]), "^values: is a list; allowed: a mapping of dotted"),
    "results": (lambda: workflow_lib.load(MINE).results()[None], "^results: is None; allowed: the name of a run"),
    "open_run": (lambda: workflow_lib.open_run(5), "^run: is a int; allowed: the id of a run"),
    "compare": (lambda: workflow_lib.compare("a", [1]), "^compare: is a list; allowed: runs and experiments"),
    "base": (lambda: GRID.create(None, "a"), "^base: is None; allowed: the path of an experiment file, or a mapping$"),
    "grid name": (lambda: GRID.create(MINE, Path("a")), "^name: is a PosixPath; allowed: the name of the new exp"),
    "run_grid": (
        lambda: workflow_lib.run_grid({"seed": [1]}, MINE, "a"),
        "^grid: is a dict; allowed: a ParameterGrid$",
    ),
    "predict": (lambda: workflow_lib.predict(None, "a"), "^run: is None; allowed: the id of a run"),
    "data": (lambda: workflow_lib.predict("a", [1, 2]), "^data: is a list; allowed: a file, a folder, a pandas"),
    "size": (
        lambda: workflow_lib.predict("a", "b", batch_size=2.5),
        "^batch_size: is a float; allowed: a whole number",
    ),
    "boolean": (lambda: workflow_lib.predict("a", "b", batch_size=True), "^batch_size: is a bool; allowed: a whole"),
    "device": (lambda: workflow_lib.predict("a", "b", device="gpu"), "^--device: 'gpu' is not allowed; allowed: auto"),
    "torch device": (lambda: trained._device("tpu"), "^device: 'tpu' is not allowed; allowed: auto, cpu, cuda and"),
    "missing device": (lambda: trained._device("cuda:99"), "^runtime.device: cuda:99 needs cuda:99"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_an_argument_of_a_wrong_type_has_one_message(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
    assert not [path for path in Path("config").iterdir() if path.name != "config.yaml"]


def test_a_row_of_the_points_leads_to_the_name_of_its_run() -> None:
    planned = GRID.create(MINE, "sizes").plan()
    assert [planned.name_of(row) for _, row in GRID.points.iterrows()] == [*planned]


def test_an_experiment_without_results_has_tables_with_their_columns() -> None:
    experiment = workflow_lib.load(MINE)
    results = experiment.results()
    assert [*results.history] == ["run", "epoch", "step"]
    assert [*results.configurations] == ["runs", "typical_run"]
    assert [*results.runs] == ["state", "reason"]
    with pytest.raises(IndexError):
        results[0]
    types = experiment.status().dtypes.astype(str)
    assert {*types[["step", "steps", "epochs", "attempts"]]} == {"Int64"}
    assert {*types[["epoch", "samples_per_s", "used_s"]]} == {"float64"}


def test_a_run_that_has_begun_has_no_record_of_its_process_as_the_reason() -> None:
    (name,) = workflow_lib.load(MINE).plan()
    log = Path("logs/train/mine", f"{name}.log")
    log.parent.mkdir(parents=True)
    for line, reason in (
        (f"12:00 info  {BEGINS}{{}}\n", "begun"),
        ("12:00 info  a message\n", "12:00 info  a message"),
    ):
        with log.open("a") as file:
            file.write(line)
        assert workflow_lib.load(MINE).results().runs.loc[name, "reason"] == reason


def test_the_types_of_columns_do_not_depend_on_what_is_missing() -> None:
    rows = [{"run": "a", "steps": 3, "loss": 0.5, "low": None, "hidden": [8]}, {"run": "b", "seed": 10**20}]
    table = frame(rows, numbers=["loss", "low"], index="run")
    assert {name: str(kind) for name, kind in table.dtypes.items()} == {
        **{"steps": "Int64", "loss": "float64", "low": "float64"},
        **{"hidden": "object", "seed": "object"},
    }
    assert table.loc["b", "steps"] is pandas.NA
    assert np.isnan(table.loc["b", "loss"])
    assert str(frame(rows[:1])["steps"].dtype) == "int64"
    assert str(frame(rows[:1], whole=["steps"])["steps"].dtype) == "Int64"
    assert [*curve([], ["run", "epoch", "step"])] == ["run", "epoch", "step"]
    assert str(curve([{"epoch": 1, "step": 2, "val_loss": None}], ["epoch"])["val_loss"].dtype) == "float64"
