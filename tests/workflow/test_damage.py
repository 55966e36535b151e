"""Damaged and lost files are detected before use, reported, and regenerated where possible."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.workflow.conftest import Project
from tests.workflow.test_rerun import OF_A_RUN, attempts, contents, jobs_of, run_with, runs_of, study


def flip(path: Path, place: int) -> None:
    """Flip a bit of the file without changing its size and time."""
    state, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 0x80 if content[place] > 127 else 0x01
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("place", [-1, -9, 60])
def test_damaged_weights_are_written_again_before_use(finished: Project, place: int) -> None:
    run = run_with(finished, 8)
    folder = finished.folder / "results/tiny/runs" / run
    made = contents(folder)
    flip(folder / "model.safetensors", place)
    (folder / "evaluation.json").unlink()
    outcome = finished.make(f"results/tiny/runs/{run}/evaluation.json")
    assert outcome.jobs == {("evaluate", run)}
    log = finished.folder / f"logs/evaluate/tiny/{run}.log"
    assert "was damaged: its weights are restored" in log.read_text()
    for name in ("model.safetensors", "predictions.csv"):
        assert contents(folder)[name] == made[name]


def test_damaged_weights_without_a_checkpoint_are_reported(finished: Project) -> None:
    run = run_with(finished, 8)
    folder = finished.folder / "results/tiny/runs" / run
    flip(folder / "model.safetensors", -1)
    (folder / "evaluation.json").unlink()
    shutil.rmtree(finished.folder / "work/runs")
    outcome = finished.run(f"results/tiny/runs/{run}/evaluation.json")
    assert outcome.code != 0
    assert f"{run}/model.safetensors: damaged" in outcome.output
    assert not (folder / "evaluation.json").exists()


def test_a_damaged_frozen_experiment_is_reported_and_frozen_again(finished: Project) -> None:
    frozen = next((finished.folder / "work/experiments").glob("*.json"))
    text = frozen.read_text()
    frozen.write_text(text.replace('"bootstrap": 20', '"bootstrap": 21'))
    name = f"work/experiments/{frozen.name}"
    shown = finished.everstep("freeze", "--experiment", name, "--output", "x.json")
    assert shown.returncode != 0
    assert f"{name}: damaged" in shown.stderr
    assert finished.run("--configfile", name, "--dry-run").code != 0
    finished.make("--dry-run")
    assert frozen.read_text() == text


def test_damaged_files_of_the_study_and_the_data_are_reported_and_made_again(finished: Project) -> None:
    before = attempts(finished)
    folder = finished.folder / "results/tiny"
    paths = [folder / "tune" / study(finished) / name for name in ("suggest-0001.json", "trial-0000.json", "best.json")]
    paths.append(next(folder.glob("data/*.json")))
    made = [json.loads(path.read_text()) for path in paths]
    for path in paths:
        flip(path, path.read_bytes().index(b'"digest": "') + 12)
    outcome = finished.make()
    for path, content in zip(paths, made, strict=True):
        assert f"{path.relative_to(finished.folder)} is damaged, and is made again" in outcome.output
        assert json.loads(path.read_text()) == content
    assert attempts(finished) == before


def test_results_are_made_again_without_training_after_the_loss_of_the_store(finished: Project) -> None:
    """The models are in results/; only a deleted model needs a training."""
    runs = [*runs_of(finished), "tuned"]
    shutil.rmtree(finished.folder / "work")
    assert finished.make().is_nothing
    outcome = finished.make("--config", "set=evaluate.bootstrap=30")
    assert outcome.jobs == {(rule, run) for rule in ("evaluate", "export") for run in runs} | {("report", None)}
    lost = runs[0]
    (finished.folder / "results/tiny/runs" / lost / "model.safetensors").unlink()
    assert finished.make("--config", "set=evaluate.bootstrap=30").jobs == jobs_of(lost) | {("report", None)}
    assert {rule for rule, _ in jobs_of(lost)} == set(OF_A_RUN)
    assert len(attempts(finished)) == 1
