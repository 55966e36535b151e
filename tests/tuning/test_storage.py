"""The copy of a study in an Optuna storage."""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest

from tests.support.study import Study
from workflow_lib import cli, plan, tuning
from workflow_lib.errors import ConfigError
from workflow_lib.results import layout


def finished_trials(study: optuna.Study) -> list[tuple[object, ...]]:
    return [(t.state, t.values, t.params, t.intermediate_values, t.user_attrs["run"]) for t in study.trials]


def test_a_copy_gets_the_trials_that_it_does_not_hold(finished: Study, tmp_path: Path) -> None:
    url, name = f"sqlite:///{tmp_path}/study.db", plan.study_id(finished.experiment)
    few = tmp_path / "few"
    shutil.copytree(finished.tune_dir, few)
    for number in (3, *range(5, 12)):
        tuning.result_path(few, number).unlink()
    new = [
        tuning.copy_study(tuning.load_study(finished.experiment, folder), "val_accuracy", url)
        for folder in (few, finished.tune_dir, finished.tune_dir)
    ]
    assert new == [4, 8, 0]
    copy, original = optuna.load_study(study_name=name, storage=url), finished.load()
    key = str
    assert sorted(finished_trials(copy), key=key) == sorted(finished_trials(original), key=key)
    assert (copy.direction, copy.best_params) == (original.direction, original.best_params)
    assert copy.metric_names == ["val_accuracy"]


def test_the_verb_names_the_values_by_the_metric_of_the_study(
    finished: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, url = plan.study_id(finished.experiment), f"sqlite:///{tmp_path}/study.db"
    shutil.copytree(finished.tune_dir, layout.study_dir(tmp_path / "results" / "demo", name))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["study", str(finished.folder / "experiment.json"), "--to", url]) == 0
    assert optuna.load_study(study_name=name, storage=url).metric_names == ["val_accuracy"]


def test_a_study_of_somebody_else_is_left_alone(finished: Study, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    theirs = optuna.create_study(storage=url, study_name=plan.study_id(finished.experiment))
    theirs.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(ConfigError, match="not a copy"):
        tuning.copy_study(finished.load(), "val_accuracy", url)
    assert len(theirs.trials) == 1


@pytest.mark.parametrize(
    "url",
    ["study.db", "sqlite:////proc/nowhere/study.db", "nosuch://u:secret@host/db", "mysql+nosuch://u:secret@host/db"],
)
def test_a_storage_that_cannot_be_written_is_told_in_one_line_without_its_password(finished: Study, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tuning.copy_study(finished.load(), "val_accuracy", url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
