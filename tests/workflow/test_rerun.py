"""The jobs that a change reruns, as a real Snakemake plans or runs them on a finished pipeline."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.workflow.conftest import Job, Project
from workflow_lib.plan import STAGES

SWEEP = "[[8], [16]]"
OF_A_RUN = ("train", "evaluate", "export")


def runs_of(project: Project) -> dict[str, dict[str, Any]]:
    """Return the planned runs by id."""
    plan = json.loads((project.folder / "results/tiny/plan.json").read_text())
    return {run["id"]: run for run in plan["runs"]}


def run_with(project: Project, *hidden: int) -> str:
    """Return the id of the planned run with these hidden layers."""
    return next(i for i, r in runs_of(project).items() if r["swept"]["model.params.hidden"] == list(hidden))


def jobs_of(run: str) -> set[Job]:
    """Return all jobs of a run."""
    return {(rule, run) for rule in OF_A_RUN}


def attempts(project: Project) -> set[str]:
    """Return the records of all training attempts, of all runs."""
    return {str(path) for path in (project.folder / "work/runs").glob("*/*/attempts/*.json")}


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in the folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_pipeline_does_nothing(finished: Project) -> None:
    assert finished.make().is_nothing


def test_every_planned_run_and_the_tuned_one_is_finished(finished: Project) -> None:
    for run in [*runs_of(finished), "tuned"]:
        assert {"train.json", "model.safetensors", "evaluation.json", "model.onnx", "export.json"} <= set(
            contents(finished.folder / "results/tiny/runs" / run)
        )
    assert (finished.folder / "results/tiny/report.html").exists()


def test_runs_do_not_depend_on_the_order_of_keys(project: Project) -> None:
    """`rule plan` reads the frozen experiment, whose keys are sorted; the Snakefile reads the user's file."""
    project.write(
        "name: tiny\nsweep:\n  grid:\n    training.label_smoothing: [0, 0.1]\n    seed: [0, 1]\n"
        "    optimizer: [{name: sgd, momentum: 0.5}]\n  zip: {training.epochs: [1], training.batch_size: [32]}\n"
        "  list: [{training.clip_norm: 1, augment.noise: 0.1, data.params: {}}]\n"
    )
    project.make("results/tiny/plan.json")
    trained = {run for rule, run in project.plan() if rule == "train"}
    assert len(trained) == 4
    assert trained == runs_of(project).keys()


def test_a_changed_sweep_value_reruns_that_run_and_the_report(finished: Project) -> None:
    before = attempts(finished)
    kept = contents(finished.folder / "results/tiny/runs" / run_with(finished, 8))
    finished.edit("config/tiny.yaml", SWEEP, "[[8], [12]]")
    outcome = finished.make()
    new = run_with(finished, 12)
    assert outcome.jobs == jobs_of(new) | {("plan", None), ("report", None)}
    assert len(attempts(finished) - before) == 1
    assert contents(finished.folder / "results/tiny/runs" / run_with(finished, 8)) == kept
    assert finished.make().is_nothing


def test_a_larger_sweep_runs_the_new_points_only(finished: Project) -> None:
    finished.edit("config/tiny.yaml", SWEEP, "[[8], [16], [20], [24]]")
    jobs = finished.plan()
    new = {run for rule, run in jobs if rule == "train"}
    assert len(new) == 2
    assert not new & set(runs_of(finished))
    assert jobs == set().union(*map(jobs_of, new)) | {("plan", None), ("report", None)}


def test_a_smaller_sweep_reruns_the_report_only(finished: Project) -> None:
    finished.edit("config/tiny.yaml", SWEEP, "[[16]]")
    assert finished.plan() == {("plan", None), ("report", None)}


def test_a_run_of_an_earlier_plan_stays_a_target(finished: Project) -> None:
    old = run_with(finished, 8)
    finished.edit("config/tiny.yaml", SWEEP, "[[16]]")
    finished.make("results/tiny/plan.json")
    export = f"results/tiny/runs/{old}/export.json"
    assert finished.make(export).is_nothing
    (finished.folder / export).unlink()
    assert finished.make(export).jobs == {("export", old)}


def test_a_report_setting_reruns_the_report_only(finished: Project) -> None:
    assert finished.plan("--config", 'set=report.title="Another title"') == {("report", None)}


def test_an_evaluation_setting_retrains_nothing(finished: Project) -> None:
    runs = [*runs_of(finished), "tuned"]
    jobs = finished.plan("--config", "set=evaluate.bootstrap=30")
    assert jobs == {(rule, run) for rule in ("evaluate", "export") for run in runs} | {("report", None)}


@pytest.mark.parametrize(
    "setting",
    [
        "runtime.threads=2",
        "runtime.nproc=2",
        "runtime.device=cpu",
        "runtime.log_level=debug",
        "checkpoint.interval_steps=5",
        "'labels={who: me}'",
        "data.shard_samples=100",
        "data.in_memory=false",
    ],
)
def test_a_setting_that_cannot_change_the_result_reruns_nothing(finished: Project, setting: str) -> None:
    assert finished.make("--config", f"set={setting}").is_nothing


def test_tracking_copies_the_curves_and_reruns_nothing(finished: Project) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    tracked = ("--config", "set=tracking.to=[tensorboard]")
    assert finished.make(*tracked).jobs == {("track", None)}
    rows = json.loads((finished.folder / "results/tiny/tracking.json").read_text())["rows"]
    assert {*runs_of(finished)} <= rows.keys()
    assert set(rows.values()) == {2}
    assert len(list(finished.folder.glob("tracking/tensorboard/tiny/*/events.*"))) == len(rows)
    assert finished.make(*tracked).is_nothing


def test_a_deleted_model_is_written_again_without_training(finished: Project) -> None:
    run = run_with(finished, 8)
    folder = finished.folder / "results/tiny/runs" / run
    before, made = attempts(finished), contents(folder)
    (folder / "model.safetensors").unlink()
    assert finished.make().jobs == jobs_of(run) | {("report", None)}
    assert attempts(finished) == before
    assert {name: contents(folder)[name] for name in ("model.safetensors", "history.csv")} == {
        name: made[name] for name in ("model.safetensors", "history.csv")
    }


def raise_number(project: Project, stage: str) -> None:
    number = STAGES[stage]
    project.edit("workflow_lib/config/stages.py", f'"{stage}": {number}', f'"{stage}": {number + 1}')


def test_a_new_stage_number_of_evaluate_reruns_it_and_all_that_depends_on_it(finished: Project) -> None:
    runs = [*runs_of(finished), "tuned"]
    raise_number(finished, "evaluate")
    assert finished.plan() == {(r, run) for r in ("evaluate", "export") for run in runs} | {("report", None)}


def test_a_new_stage_number_of_report_reruns_the_report(finished: Project) -> None:
    raise_number(finished, "report")
    assert finished.plan() == {("report", None)}


def test_a_new_stage_number_of_train_trains_everything_under_new_names(finished: Project) -> None:
    raise_number(finished, "train")
    jobs = finished.plan()
    trained = {run for rule, run in jobs if rule == "train" and run}
    assert len(trained) == 3
    assert not (trained - {"tuned"}) & set(runs_of(finished))
    assert {rule for rule, _ in jobs} == {"plan", *OF_A_RUN, "suggest", "trial", "best", "report"}


def test_more_trials_keep_the_finished_ones(finished: Project) -> None:
    done = contents(finished.folder / "work/../results/tiny/tune" / study(finished))
    jobs = finished.plan("--config", "set=tune.trials=3")
    assert {rule for rule, _ in jobs} == {"plan", "suggest", "trial", "best", "train", "evaluate", "export", "report"}
    outcome = finished.run("--dry-run", "--config", "set=tune.trials=3")
    assert "number=0002" in outcome.output
    assert "number=0001" not in outcome.output
    assert {name for name in done if name.startswith("trial")} == {"trial-0000.json", "trial-0001.json"}


def study(project: Project) -> str:
    """Return the id of the planned study."""
    return str(json.loads((project.folder / "results/tiny/plan.json").read_text())["study"]["id"])


def test_a_second_experiment_shares_the_store(finished: Project) -> None:
    before = attempts(finished)
    run = run_with(finished, 8)
    finished.edit("config/tiny.yaml", "name: tiny", "name: other")
    digest = run.rpartition("-")[2]
    plan = finished.make("results/other/plan.json")
    assert plan.jobs == {("plan", None)}
    other = next(
        r["id"]
        for r in json.loads((finished.folder / "results/other/plan.json").read_text())["runs"]
        if r["id"].endswith(digest)
    )
    finished.make(f"results/other/runs/{other}/train.json")
    assert attempts(finished) == before


def test_a_changed_data_file_is_new_data(project: Project) -> None:
    """Slow: two trainings. A file with another time and the same content is the same data."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 4, 4), dtype=np.uint8), np.arange(60) % 2
    path = project.folder / "my images.npz"
    np.savez(path, train_images=images, train_labels=labels)
    project.write(
        "name: mine\ntraining: {epochs: 1, batch_size: 8}\n"
        "data: {name: npz, params: {path: my images.npz}}\nmodel: {params: {hidden: [4]}}\n"
    )
    project.make("--until", "train")
    path.touch()
    assert project.make("--until", "train").jobs == set()
    np.savez(path, train_images=images[::-1], train_labels=labels)
    assert {rule for rule, _ in project.make("--until", "train").jobs} == {"preprocess", "train"}
    assert len(attempts(project)) == 2
    older = project.folder / "older.npz"
    np.savez(older, train_images=images[::2].repeat(2, 0), train_labels=labels)
    os.utime(older, (1.6e9, 1.6e9))  # a downloaded or unpacked file can be older
    older.rename(path)
    assert {rule for rule, _ in project.plan("--until", "train")} == {"preprocess", "train"}


def test_changed_code_that_a_data_set_imports_prepares_its_data_again(project: Project) -> None:
    (project.folder / "mine").mkdir()
    (project.folder / "mine" / "numbers.py").write_text("NOISE = 1.0\n")
    text = (project.folder / "workflow_lib/datasets/digits.py").read_text()
    text = text.replace("    import numpy as np\n", "    import mine.numbers\n    import numpy as np\n")
    (project.folder / "mine" / "dots.py").write_text(text)
    project.write("name: mine\ndata: {name: mine.dots}\nmodel: {params: {hidden: [4]}}\n")
    project.make("--until", "preprocess")
    assert project.make("--until", "preprocess").jobs == set()
    (project.folder / "mine" / "numbers.py").write_text("NOISE = 2.0\n")
    assert {rule for rule, _ in project.make("--until", "preprocess").jobs} == {"preprocess"}


def test_an_overwritten_image_is_new_data(project: Project) -> None:
    """Snakemake itself notices only files that are added to or removed from the folder directly."""
    random = np.random.default_rng(0)
    for number, name in enumerate("ab" * 20):
        path = project.folder / "images" / name / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (4, 4), dtype=np.uint8)).save(path)
    project.write("name: mine\ndata: {name: image_folder, params: {path: images}}\nmodel: {params: {hidden: [4]}}\n")
    project.make("--until", "preprocess")
    assert project.make("--until", "preprocess").jobs == set()
    Image.new("L", (4, 4)).save(project.folder / "images" / "a" / "00.png")
    assert {rule for rule, _ in project.make("--until", "preprocess").jobs} == {"preprocess"}
