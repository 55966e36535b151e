from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.repository import ROOT
from tests.support.study import Study, make_experiment, trials_first, trials_last
from workflow_lib import config, files, plan, tuning
from workflow_lib.errors import ConfigError


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_in_which_trials_finish_changes_nothing(
    finished: Study, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    other = Study(finished.experiment, tmp_path_factory.mktemp("other"))
    assert other.run(random.Random(seed).choice).content() == finished.content()


def test_one_trial_at_a_time_or_a_full_window_is_the_same_study(finished: Study, tmp_path: Path) -> None:
    assert Study(finished.experiment, tmp_path).run(trials_last).content() == finished.content()


def test_results_beyond_the_window_do_not_matter(finished: Study, tmp_path: Path) -> None:
    study = Study(finished.experiment, tmp_path).run(trials_first)
    before = tuning.suggestion_path(tmp_path / "tune", 9).read_bytes()
    for n in range(9 - 3 + 1, 12):
        tuning.result_path(tmp_path / "tune", n).write_text("not even JSON")
    study.suggest(9)
    assert tuning.suggestion_path(tmp_path / "tune", 9).read_bytes() == before


def test_results_before_the_window_matter(finished: Study, tmp_path: Path) -> None:
    study = Study(finished.experiment, tmp_path).run(trials_first)
    for n in range(9 - 3 + 1):
        path = tuning.result_path(tmp_path / "tune", n)
        result = files.read_json(path)
        files.write_json(path, {**result, "state": "complete", "value": 1 - result["value"]})
    assert study.suggest(9)["params"] != finished.suggest(9)["params"]


def test_a_suggestion_needs_the_newest_result_before_the_window(finished: Study, tmp_path: Path) -> None:
    study = Study(finished.experiment, tmp_path).run(trials_first)
    tuning.result_path(study.tune_dir, 9 - 3).unlink()
    with pytest.raises(FileNotFoundError, match="trial-0006"):
        study.suggest(9)


def test_suggestions_avoid_the_running_trials(tmp_path: Path) -> None:
    """Constant liar: the parameters of running trials count, although their results are unknown."""
    study = Study(make_experiment(tmp_path), tmp_path).run(trials_first)
    before = study.suggest(11)["params"]
    for n in (9, 10):
        path = tuning.suggestion_path(study.tune_dir, n)
        near = {**before, "optimizer.lr": before["optimizer.lr"] * (1 + n / 1000)}
        files.write_json(path, {**files.read_json(path), "params": near})
    assert study.suggest(11)["params"] != before


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_deleted_suggestions_are_written_again_with_the_same_bytes(tmp_path: Path, sampler: str) -> None:
    experiment = make_experiment(tmp_path, sampler=sampler, trials=40, window=4, pruner="median")
    study = Study(experiment, tmp_path).run(trials_first)
    before = study.content()
    for n in random.Random(1).sample(range(40), 40):
        tuning.suggestion_path(study.tune_dir, n).unlink()
        study.suggest(n)
    assert study.content() == before
    params = [json.dumps(study.suggest(n)["params"]) for n in range(40)]
    assert len(set(params)) == 40


def test_another_process_with_another_hash_seed_writes_the_same_bytes(finished: Study, tmp_path: Path) -> None:
    snapshot = plan.freeze_experiment(finished.experiment, tmp_path)
    output = tmp_path / "again.json"
    command = [sys.executable, "-m", "workflow_lib", "suggest", "--experiment", str(snapshot)]
    command += ["--number", "11", "--tune-dir", str(finished.tune_dir), "--output", str(output)]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    assert output.read_bytes() == tuning.suggestion_path(finished.tune_dir, 11).read_bytes()


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    low=st.floats(1e-12, 1e6, allow_subnormal=False),
    factor=st.one_of(st.floats(1 + 1e-9, 1 + 1e-6), st.floats(1.001, 1e9)),
    log=st.booleans(),
)
def test_suggested_numbers_are_within_bounds_and_survive_json(
    tmp_path_factory: pytest.TempPathFactory, seed: int, low: float, factor: float, log: bool
) -> None:
    folder = tmp_path_factory.mktemp("bounds")
    space = {"optimizer.lr": {"type": "float", "low": low, "high": low * factor, "log": log}}
    suggestion = Study(make_experiment(folder, space=space, seed=seed), folder).suggest(0)
    assert low <= suggestion["params"]["optimizer.lr"] <= low * factor
    assert tuning.load_suggestion(tuning.suggestion_path(folder / "tune", 0)) == suggestion


def test_a_point_is_not_repeated_while_there_are_others(tmp_path: Path) -> None:
    space = {"training.batch_size": {"type": "int", "low": 1, "high": 8}}
    study = Study(make_experiment(tmp_path, space=space, trials=10, sampler="random"), tmp_path).run(trials_first)
    tried = [study.suggest(n)["params"]["training.batch_size"] for n in range(10)]
    assert sorted(tried[:6]) == sorted(set(tried[:6]))
    assert set(tried) <= set(range(1, 9))


def test_tpe_finds_what_random_search_does_not(tmp_path: Path) -> None:
    values = {}
    for sampler in ("tpe", "random"):
        folder = tmp_path / sampler
        tpe = make_experiment(folder, sampler=sampler, trials=30, min_trials=5)
        values[sampler] = Study(tpe, folder).run(trials_last).best()["value"]
    assert values["tpe"] > values["random"]


def test_a_trials_run_is_the_experiment_with_its_parameters_and_settings(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path, set={"training.epochs": 2})
    suggestion = Study(experiment, tmp_path).suggest(0)
    output = tuning.suggestion_path(tmp_path / "tune", 0)
    run, digest = plan.load_run(str(output), tmp_path / "work")
    assert digest == suggestion["run"]["digest"]
    assert run.training.epochs == 2
    assert run.optimizer.lr == suggestion["params"]["optimizer.lr"]
    assert run == plan.apply(experiment, {"training.epochs": 2, **suggestion["params"]})


def test_an_experiment_without_a_study_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "plain.yaml"
    path.write_text("name: plain\n")
    with pytest.raises(ConfigError, match="write a `tune:` section"):
        tuning.suggest(config.load([path]), 0, tmp_path, tmp_path, tmp_path / "out.json")


def test_a_suggestion_imports_nothing_heavy(finished: Study, tmp_path: Path) -> None:
    snapshot = plan.freeze_experiment(finished.experiment, tmp_path)
    program = (
        "import sys; from workflow_lib.cli import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'torch', 'pandas', 'sklearn', 'scipy', 'plotly'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, "suggest", "--experiment", str(snapshot), "--number", "8"]
    command += ["--tune-dir", str(finished.tune_dir), "--output", str(tmp_path / "out.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0 []\n", "")
