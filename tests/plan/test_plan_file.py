"""The plan lists and freezes the runs and the study of an experiment, and prints them as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.plan.conftest import TUNE, experiment
from workflow_lib import plan
from workflow_lib.errors import ConfigError

pytestmark = pytest.mark.usefixtures("folder")


def test_the_report_has_the_runs_of_the_plan(folder: Path) -> None:
    for tune, tuned in ((None, []), (TUNE, ["tuned"])):
        whole = experiment(sweep={"grid": {"seed": [0, 1]}}, tune=tune)
        plan.write_plan(whole, folder / "work", folder / "plan.json")
        assert plan.reported_runs(folder / "plan.json") == [*(run.id for run in plan.expand(whole)), *tuned]
    (folder / "plan.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a plan"):
        plan.reported_runs(folder / "plan.json")


def test_the_plan_freezes_its_runs_and_its_study(folder: Path) -> None:
    whole = experiment(sweep={"grid": {"seed": [0, 1]}}, tune=TUNE)
    plan.write_plan(whole, folder / "work", folder / "plan.json")
    written = json.loads((folder / "plan.json").read_text())
    assert [run["id"] for run in written["runs"]] == [run.id for run in plan.expand(whole)]
    for run in written["runs"]:
        assert plan.load_run(run["id"], folder / "work")[1] == run["digest"]
    study = written["study"]
    assert study["id"] == plan.study_id(whole) == f"a-{study['digest'][:12]}"
    assert (folder / "work" / "studies" / study["digest"] / "study.json").is_file()


def test_labels_and_machines_do_not_change_the_plan() -> None:
    before = experiment(sweep={"grid": {"seed": [0, 1]}}, tune=TUNE)
    after = experiment(
        sweep={"list": [{"seed": 0}, {"seed": 1}]},
        tune=TUNE,
        labels={"a": "b"},
        runtime={"threads": 2},
        report={"title": "x"},
    )
    assert plan.plan_digest(before, plan.expand(before)) == plan.plan_digest(after, plan.expand(after))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"tune": {**TUNE, "trials": 9}}, True),
        ({"tune": {**TUNE, "name": "other"}}, True),
        ({"labels": {"a": "b"}}, True),
        ({"runtime": {"threads": 2}}, True),
        ({"sweep": {"grid": {"seed": [1]}}}, True),
        ({"tune": {**TUNE, "window": 3}}, False),
        ({"tune": {**TUNE, "seed": 1}}, False),
        ({"tune": {**TUNE, "metric": "val_loss"}}, False),
        ({"tune": {**TUNE, "set": {"training.epochs": 2}}}, False),
        ({"seed": 1}, False),
        ({"model": {"name": "cnn"}}, False),
    ],
)
def test_the_study_digest_changes_only_with_its_suggestions(change: dict[str, Any], same: bool) -> None:
    before, after = experiment(tune=TUNE), experiment(**{"tune": TUNE, **change})
    assert (plan.study_digest(before) == plan.study_digest(after)) is same


def test_only_trials_have_the_settings_of_tune_set() -> None:
    whole = experiment(training={"epochs": 50}, tune={**TUNE, "set": {"training.epochs": 2}})
    trial = plan.apply(plan.tuned_base(whole), {"optimizer.lr": 0.004})
    best = plan.apply(whole, {"optimizer.lr": 0.004})
    assert (trial.training.epochs, best.training.epochs) == (2, 50)
    assert trial.optimizer == best.optimizer
    (hand,) = plan.expand(experiment(training={"epochs": 2}, optimizer={"lr": 0.004}))
    assert plan.run_digest(trial) == hand.digest


def test_a_section_digest_depends_on_its_section_only() -> None:
    before = experiment()
    after = experiment(evaluate={"bootstrap": 5}, report={"title": "x"})
    assert plan.section_digest(before, "evaluate") != plan.section_digest(after, "evaluate")
    assert plan.section_digest(before, "export") == plan.section_digest(after, "export")


def test_the_table_shows_each_run_and_what_differs() -> None:
    lines = plan.table(
        experiment(sweep={"list": [{"model.name": "cnn"}, {"model.name": "mlp", "seed": 0}, {"seed": 0}]}, tune=TUNE)
    ).splitlines()
    assert lines[0] == "a: 2 runs, 1 data set (3 points of the sweep; those with equal settings are one run)"
    assert lines[2].split() == ["run", "model.name", "seed"]
    assert lines[3].split()[1:] == ["cnn"]
    assert lines[4].split()[1:] == ["mlp", "0"]
    assert "4 trials, 2 at a time, for val_accuracy" in lines[6]


def test_the_table_shows_the_data_if_it_differs() -> None:
    text = plan.table(experiment(sweep={"grid": {"data.split_seed": [0, 1]}}))
    assert "2 data sets" in text
    assert text.count("digits-") == 2


def test_the_columns_of_a_table_are_listed_or_why_it_is_rejected(folder: Path) -> None:
    Path("x.csv").write_text("n,c,y\n" + "".join(f"{row * 7 % 11},{'ab'[row % 2]},{row % 2}\n" for row in range(20)))
    data = {"name": "table", "params": {"path": "x.csv", "target": "y"}}
    assert plan.columns(experiment(data=data))[0][2:] == [
        "  `y`: target, 2 classes (0, 1)",
        "  `n`: number, 0 to 10",
        "  `c`: category, 2 different (a, b)",
    ]
    Path("x.csv").write_text("n,y\n" + "".join(f'"{row},5",{row % 2}\n' for row in range(20)))
    lines, (line,) = plan.columns(experiment(data=data))
    assert lines == []
    assert "looks like a number in another notation" in line
    assert plan.columns(experiment()) == ([], [])
