"""A renamed setting: experiment files may use the old name, with a message; no digest and no stored file changes."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from workflow_lib import config, plan, tuning
from workflow_lib.config.renamed import current_names, with_current_names, with_stored_names
from workflow_lib.errors import ConfigError
from workflow_lib.files import write_signed

# An experiment that uses the renamed setting in every place where a setting can be named.
OLD = """\
name: a
training: {accumulation: 2, batch_size: 32}
sweep:
  grid: {training.accumulation: [1, 4], seed: [0, 1]}
  exclude: [{training.accumulation: 4, seed: 1}]
tune:
  space:
    optimizer.lr: {low: 0.001, high: 0.1}
  set: {training.epochs: 2, training.accumulation: 8}
"""
SPELLINGS = {"old": OLD, "new": OLD.replace("accumulation", "accumulation_steps")}
TUNED = "name: a\ntune: {space: {training.%s: {type: int, low: 1, high: 4}}}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, *overrides: str) -> config.Experiment:
    Path("x.yaml").write_text(text)
    return config.load([Path("x.yaml")], overrides)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_renamed_settings_are_known() -> None:
    assert current_names() == {"training.accumulation": "training.accumulation_steps"}


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
def test_digests_names_and_files_are_those_of_version_0_1(text: str) -> None:
    """Recorded with version 0.1, stages preprocess 2 and train 2."""
    experiment, work = load(text), Path("work")
    runs = plan.expand(experiment)
    assert [run.id for run in runs] == [
        "a-seed0-accumulation1-b9417bea399a",
        "a-seed0-accumulation4-00b549a67bee",
        "a-seed1-accumulation1-1e348ebcd613",
    ]
    assert [run.config.training.accumulation_steps for run in runs] == [1, 4, 1]
    assert plan.study_digest(experiment) == "0192b4c162d0f0d354d6eff06b1f2a74"
    assert plan.plan_digest(experiment, runs) == "dd36287755c6426c9f9b0ccd88e915d7"
    frozen = plan.freeze_experiment(experiment, work)
    assert frozen.name == "132603195e9f2ab91685c99010d20d65.json"
    assert sha256(frozen) == "e2c1d0f9319eb7b9d3ea4e422fed532ac4d964f5bbd1d5e3272f7ef78a3f6d5d"
    run = plan.freeze(runs[0].config, work)
    assert sha256(run) == "4e9a8e6b288ccb97aad79320db568c5175131514faac0dfbd4ec9d6704bcb923"


@pytest.mark.parametrize("name", ["accumulation", "accumulation_steps"])
def test_a_study_that_tunes_the_setting_keeps_its_digest(name: str) -> None:
    assert plan.study_digest(load(TUNED % name, "training.batch_size=32")) == "c47f011cc12f0cffb36654b44aba3418"


def test_both_spellings_are_the_same_experiment() -> None:
    assert load(SPELLINGS["old"]) == load(SPELLINGS["new"])


def test_each_old_name_is_reported_with_its_place_and_new_name(caplog: pytest.LogCaptureFixture) -> None:
    load(OLD, "training.accumulation=4")
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    places = [line.partition(" is now called ")[0] for line in said]
    assert places == [
        "x.yaml:5: sweep.exclude[0].training.accumulation",
        "x.yaml:4: sweep.grid.training.accumulation",
        "x.yaml:2: training.accumulation",
        "x.yaml:9: tune.set.training.accumulation",
        "set training.accumulation=4: training.accumulation",
    ]
    assert said[2].endswith(
        "training.accumulation is now called training.accumulation_steps; version 0.2 is the last one that reads the "
        "old name"
    )


def test_the_new_name_and_a_frozen_experiment_are_read_without_a_message(caplog: pytest.LogCaptureFixture) -> None:
    experiment = load(SPELLINGS["new"])
    assert config.load([plan.freeze_experiment(experiment, Path("work"))]) == experiment
    assert not caplog.records


@pytest.mark.parametrize(
    ("base", "over"), [("accumulation", "accumulation_steps"), ("accumulation_steps", "accumulation")]
)
def test_one_spelling_overrides_the_other(base: str, over: str) -> None:
    Path("base.yaml").write_text(f"name: a\ntraining: {{{base}: 2}}")
    text = f"extends: base.yaml\ntraining: {{{over}: 3}}"
    assert load(text).training.accumulation_steps == 3
    assert load(text, f"training.{base}=4").training.accumulation_steps == 4


def test_one_file_with_both_names_is_rejected() -> None:
    with pytest.raises(
        ConfigError, match="x.yaml:2: training.accumulation is the old name of training.accumulation_steps, which is se"
    ):
        load("name: a\ntraining: {accumulation: 2, accumulation_steps: 2}")


def test_a_problem_is_reported_at_the_line_of_the_old_name() -> None:
    with pytest.raises(ConfigError, match="x.yaml:3: training.accumulation_steps: 0 is not allowed"):
        load("name: a\ntraining:\n  accumulation: 0")


def test_a_run_frozen_with_the_old_name_is_read() -> None:
    run = plan.base(load(OLD))
    path = plan.freeze(run, Path("work"))
    assert json.loads(path.read_text())["training"]["accumulation"] == 2
    assert plan.load_run(path.parent.name, Path("work")) == (run, plan.run_digest(run))


def test_labels_and_settings_of_plugins_keep_their_names() -> None:
    values: dict[str, Any] = {"labels": {"training.accumulation": "x"}, "data": {"params": {"accumulation": 1}}}
    assert with_current_names(values) == with_stored_names(values) == values


@pytest.mark.parametrize("values", [[], None, 3, {"a": [1]}, {"training": 3}])
def test_values_of_any_shape_are_left_as_they_are(values: Any) -> None:
    assert with_current_names(values) == values


@pytest.mark.filterwarnings("ignore:Argument:optuna.exceptions.ExperimentalWarning")
def test_files_of_a_study_have_the_old_name_and_are_read_with_the_new_one() -> None:
    content = dict.fromkeys(tuning.Suggestion.__annotations__, 0)
    write_signed(Path("0.json"), {**content, "params": {"training.accumulation": 2}})
    suggestion = tuning.load_suggestion(Path("0.json"))
    assert suggestion["params"] == {"training.accumulation_steps": 2}
    experiment = load(TUNED % "accumulation_steps", "training.batch_size=32")
    folder = Path("tune")
    folder.mkdir()
    suggestion = tuning.suggest(experiment, 0, folder, Path("work"), folder / "suggest-0000.json")
    assert list(suggestion["params"]) == ["training.accumulation_steps"]
    assert list(json.loads((folder / "suggest-0000.json").read_text())["params"]) == ["training.accumulation"]
    assert tuning.load_suggestion(folder / "suggest-0000.json")["params"] == suggestion["params"]
    assert suggestion["run"]["id"].startswith("a-accumulation")
