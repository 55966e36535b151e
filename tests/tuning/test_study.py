from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import ROOT
from tests.support.study import SPACE, Study, make_experiment, trials_first, trials_last
from workflow_lib import config, plan, tuning
from workflow_lib.errors import EverstepError


def test_more_trials_keep_the_first(tmp_path: Path) -> None:
    few, many = (make_experiment(tmp_path / str(n), trials=n, pruner="median") for n in (8, 12))
    assert plan.study_id(few) == plan.study_id(many)
    study = Study(few, tmp_path).run(trials_first)
    before = study.content()
    longer = Study(many, tmp_path).run(trials_first).content()
    assert {name: longer[name] for name in before} == before
    fresh = Study(many, tmp_path / "fresh").run(trials_last)
    assert fresh.content() == longer


def test_fewer_trials_leave_the_later_ones_out(finished: Study, tmp_path: Path) -> None:
    Study(finished.experiment, tmp_path).run(trials_first)
    shorter = Study(make_experiment(tmp_path / "few", trials=4, pruner="median"), tmp_path)
    assert len(tuning.load_study(shorter.experiment, shorter.tune_dir).trials) == 4
    assert shorter.best()["number"] < 4


@pytest.mark.parametrize(
    "changed",
    [
        {"space": {**SPACE, "optimizer.lr": {"type": "float", "low": 1e-5, "high": 0.2, "log": True}}},
        {"seed": 1},
        {"window": 4},
        {"sampler": "random"},
        {"pruner": "median"},
        {"set": {"training.epochs": 3}},
        {"metric": "val_loss"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_setting_that_changes_suggestions_makes_another_study(tmp_path: Path, changed: dict[str, Any]) -> None:
    before, after = make_experiment(tmp_path / "a"), make_experiment(tmp_path / "b", **changed)
    assert plan.study_id(before) != plan.study_id(after)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"window": 4}], ids=lambda changed: next(iter(changed)))
def test_another_study_has_other_random_numbers(tmp_path: Path, changed: dict[str, Any]) -> None:
    one, other = make_experiment(tmp_path / "a"), make_experiment(tmp_path / "b", **changed)
    assert Study(one, tmp_path / "a").suggest(0)["params"] != Study(other, tmp_path / "b").suggest(0)["params"]


def test_files_of_another_study_are_rejected(finished: Study) -> None:
    other = make_experiment(finished.folder / "other", seed=5)
    with pytest.raises(EverstepError, match="belongs to study"):
        Study(other, finished.folder).suggest(5)


def test_a_loaded_study_has_every_trial_in_order(finished: Study) -> None:
    study = tuning.load_study(finished.experiment, finished.tune_dir)
    results = [tuning.load_result(tuning.result_path(finished.tune_dir, n)) for n in range(12)]
    assert [trial.params for trial in study.trials] == [result["params"] for result in results]
    assert [trial.state.name.lower() for trial in study.trials] == [result["state"] for result in results]
    assert study.best_trial.number == finished.best()["number"]


@pytest.mark.filterwarnings("default")
def test_importances_sum_to_one(finished: Study) -> None:
    importances = tuning.importances(tuning.load_study(finished.experiment, finished.tune_dir))
    assert set(importances) == set(SPACE)
    assert sum(importances.values()) == pytest.approx(1)


def test_a_study_without_trials_has_no_importances(tmp_path: Path) -> None:
    assert tuning.importances(tuning.load_study(make_experiment(tmp_path), tmp_path)) == {}


def test_the_study_in_the_documentation_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "tuning.md").read_text()
    path = tmp_path / "documented.yaml"
    path.write_text("name: documented\n" + text.partition("```yaml\n")[2].partition("```")[0])
    experiment = config.load([path])
    assert experiment.tune is not None
    assert experiment.tune.set == {"training.epochs": 8}
