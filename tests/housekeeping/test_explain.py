"""Comparison of runs and experiment files: settings, where they were set, and lines of code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workflow_lib import plan
from workflow_lib.config import Experiment
from workflow_lib.housekeeping import explain
from workflow_lib.plan import user_code
from workflow_lib.store import code_record, layout

TUNE = {"trials": 4, "space": {"optimizer.lr": {"type": "float", "low": 1e-4, "high": 1e-2}}}


def experiment(**sections: Any) -> Experiment:
    return Experiment.model_validate({"name": "a", **sections})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, **sections: Any) -> str:
    Path(name).write_text(json.dumps({"name": "a", **sections}, indent=1))
    return name


def test_the_setting_that_differs_between_two_runs_is_named(folder: Path) -> None:
    first, second = plan.expand(experiment(sweep={"grid": {"optimizer.lr": [1e-3, 1e-2]}}))
    for run in (first, second):
        plan.freeze(run.config, folder)
    lines = explain.explain(first.id, second.digest, folder).splitlines()
    assert lines[2] == "Two different runs"
    assert [line.split() for line in lines[5:]] == [
        ["setting", "A", "B", "set", "by"],
        ["optimizer.lr", "0.001", "0.01"],
    ]


def test_the_place_where_a_setting_was_set_is_shown(folder: Path) -> None:
    base = write("base.yaml", seed=3)
    over = write("over.yaml", extends="base.yaml", training={"epochs": 3}, runtime={"threads": 2})
    text = explain.explain(base, over, folder)
    result, other = text.split("These change no training:")
    assert "training.epochs  10  3  A: default, B: over.yaml:5" in result
    assert "runtime.threads  1  2  A: default, B: over.yaml:8" in other
    assert "seed" not in text


def test_a_file_can_be_compared_with_a_run(folder: Path) -> None:
    (run,) = plan.expand(experiment(seed=4))
    plan.freeze(run.config, folder)
    assert "The same run" in explain.explain(write("x.yaml", seed=4, labels={"a": "b"}), run.id, folder)
    assert "seed     5  4  A: x.yaml:3" in explain.explain(write("x.yaml", seed=5), run.id, folder)


def test_runs_shared_by_two_sweeps_are_counted(folder: Path) -> None:
    first = write("one.yaml", sweep={"grid": {"seed": [0, 1, 2]}})
    second = write("two.yaml", sweep={"grid": {"seed": [2, 3]}}, tune=TUNE)
    text = explain.explain(first, second, folder)
    assert "1 run in both, 2 only in A, 1 only in B; study of A: none, of B: a-" in text


def test_equal_code_and_missing_records_of_code_are_reported(folder: Path) -> None:
    (run,) = plan.expand(experiment())
    plan.freeze(run.config, folder)
    assert "The code of the model and of its hooks is the same." in explain.explain(run.id, None, folder)
    workspace = layout.workspace_path(folder, run.digest, "d" * 32, user_code.digest(run.config))
    workspace.mkdir()
    assert "the code of A was not recorded" in explain.explain(run.id, None, folder)
    code_record.write(workspace, run.config, user_code.digest(run.config))
    assert "The code of the model and of its hooks is the same." in explain.explain(run.id, write("x.yaml"), folder)


def test_long_settings_are_cut_around_their_difference(folder: Path) -> None:
    for number, last in enumerate((5, 6)):
        write(f"{number}.yaml", model={"name": "mlp", "params": {"hidden": [*[4] * 30, last]}})
    (line,) = [line for line in explain.explain("0.yaml", "1.yaml", folder).splitlines() if "hidden" in line]
    assert "4,5]" in line
    assert "4,6]" in line
    assert len(line) < 160
