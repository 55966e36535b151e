"""Changed user code: what is rerun, which weights are rejected, and how a user accepts an earlier result."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.workflow.conftest import Project
from tests.workflow.test_rerun import attempts

NET = '''"""A user's network."""
from pathlib import Path

from torch import nn

from mine.blocks import widen
from workflow_lib.plugins import Section


class Params(Section):
    names: Path = Path("names.txt")


def build(params, spec):
    width = widen(len(params.names.read_text()))  # a comment
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, spec.outputs))
'''
BLOCKS = "def widen(size):\n    return 2 * size\n"
HOOKS = "def on_epoch_end(state):\n    print(state.epoch)\n"
MINE = """\
name: tiny
data: {name: digits}
model: {name: mine.net}
training: {epochs: 1, hooks: mine.hooks}
evaluate: {bootstrap: 20}
export: {batch_sizes: [1, 2]}
"""


@pytest.fixture(scope="module")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.repository import copy_repository

    folder = tmp_path_factory.mktemp("code") / "project"
    copy_repository(folder)
    (folder / "mine").mkdir()
    for name, text in {"net": NET, "blocks": BLOCKS, "hooks": HOOKS}.items():
        (folder / "mine" / f"{name}.py").write_text(text)
    (folder / "names.txt").write_text("ab")
    project = Project(folder)
    project.write(MINE)
    project.make()
    return folder


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Project:
    """Return a finished pipeline with the user's model and hooks."""
    folder = tmp_path / "trained"
    subprocess.run(["cp", "-a", str(_trained), str(folder)], check=True)
    return Project(folder)


def run_of(project: Project) -> str:
    """Return the id of the only run."""
    (run,) = json.loads((project.folder / "results/tiny/plan.json").read_text())["runs"]
    return str(run["id"])


def result(project: Project, name: str) -> dict[str, Any]:
    """Return a result file of the only run."""
    path = project.folder / "results/tiny/runs" / run_of(project) / name
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_comments_formatting_and_file_times_rerun_nothing(trained: Project) -> None:
    trained.edit("mine/net.py", "# a comment", "# another one")
    trained.edit("mine/net.py", "A user's network.", "Another text.")
    trained.edit("mine/blocks.py", "return 2 * size", "return (\n        2 * size)")
    for path in ("mine/hooks.py", "names.txt"):
        (trained.folder / path).touch()
    assert trained.make("--dry-run").is_nothing


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("mine/net.py", "nn.ReLU()", "nn.Tanh()"),
        ("mine/blocks.py", "2 * size", "3 * size"),
        ("mine/hooks.py", "state.epoch", "state.step"),
        ("names.txt", "ab", "ba"),
    ],
)
def test_changed_code_or_a_changed_file_trains_again_under_the_same_name(
    trained: Project, path: str, old: str, new: str
) -> None:
    run = run_of(trained)
    time = (trained.folder / path).stat().st_mtime - 1e6
    trained.edit(path, old, new)
    subprocess.run(["touch", "-d", f"@{time}", str(trained.folder / path)], check=True)  # older than before
    jobs = trained.plan()
    assert jobs == {(rule, run) for rule in ("train", "evaluate", "export")} | {("report", None)}


def test_weights_trained_by_other_code_are_not_used(trained: Project) -> None:
    """Neither by a direct `everstep evaluate`, nor by an experiment of another name that shares the store."""
    run, before = run_of(trained), attempts(trained)
    trained.edit("mine/net.py", "nn.ReLU()", "nn.Tanh()")
    folder = trained.folder / "results/tiny"
    command = [
        "evaluate",
        "--experiment",
        trained.config,
        "--run",
        run,
        "--data",
        str(next(folder.glob("data/*.json"))),
    ]
    model = ["--model", f"{folder}/runs/{run}/model.safetensors", "--output", "evaluation.json"]
    rejected = trained.everstep(*command, *model)
    assert rejected.returncode == 2
    assert "was trained by code that has changed since" in rejected.stderr
    assert not (trained.folder / "evaluation.json").exists()
    trained.edit("config/tiny.yaml", "name: tiny", "name: other")
    trained.make("--until", "evaluate")
    assert len(attempts(trained) - before) == 1
    log = next(trained.folder.glob("logs/train/other/*.log")).read_text()
    assert "other code trained this run up to step" in log
    assert "everstep accept" in log
    shown = trained.everstep("explain", run, trained.config)
    assert shown.returncode == 0
    assert "The code of the model and of its hooks is the same." in shown.stdout


def test_a_user_can_accept_a_result_and_the_acceptance_is_recorded(trained: Project) -> None:
    run, before = run_of(trained), attempts(trained)
    trained.edit("mine/blocks.py", "2 * size", "size * 2")
    shown = trained.everstep("explain", run).stdout
    assert "-    return 2 * size" in shown
    assert "+    return size * 2" in shown
    assert "nn.ReLU" not in shown
    model = (trained.folder / "results/tiny/runs" / run / "model.safetensors").read_bytes()
    trained_with = result(trained, "train.json")["code"]
    done = trained.everstep("accept", run)
    assert done.returncode == 0
    assert "is accepted for the current code" in done.stdout
    outcome = trained.make()
    assert outcome.jobs == {(rule, run) for rule in ("train", "evaluate", "export")} | {("report", None)}
    assert attempts(trained) == before
    assert (trained.folder / "results/tiny/runs" / run / "model.safetensors").read_bytes() == model
    statement = result(trained, "train.json")
    assert statement["accepted"]["trained_with"] == trained_with != statement["code"] == statement["accepted"]["code"]
    page = (trained.folder / "results/tiny/report.html").read_text()
    assert "was trained with other code, and accepted by" in page
    traced = trained.everstep("trace", f"results/tiny/runs/{run}/model.onnx")
    assert "accepted" in traced.stdout
    assert trained.make("--dry-run").is_nothing
    assert "nothing to accept" not in trained.everstep("accept", run).stdout
    trained.edit("mine/blocks.py", "size * 2", "size * 3")
    assert ("train", run) in trained.plan()


def test_retrain_trains_a_run_again(trained: Project) -> None:
    run, before = run_of(trained), attempts(trained)
    done = trained.everstep("retrain", run)
    assert done.returncode == 0
    assert f"{run}/train.json will be regenerated" in done.stdout
    aside = next((trained.folder / "work/runs").glob("*/*.aside-*"))
    assert str(aside.relative_to(trained.folder)) in done.stdout
    assert list(aside.glob("checkpoints/step-*"))
    outcome = trained.make()
    assert outcome.jobs == {(rule, run) for rule in ("train", "evaluate", "export")} | {("report", None)}
    assert len({path for path in attempts(trained) if ".aside-" not in path} - before) == 1
    again = trained.everstep("retrain", run, "tiny-0123456789ab")
    assert again.returncode == 2
    assert "no such run" in again.stderr


def test_a_missing_file_of_a_model_is_reported_before_anything_runs(trained: Project) -> None:
    (trained.folder / "names.txt").unlink()
    for shown in (trained.everstep("validate", trained.config).stderr, trained.run("--dry-run").output):
        assert "model.params.names: no such file: names.txt" in shown


def test_accepted_weights_that_do_not_fit_the_code_are_named_with_the_way_out(trained: Project) -> None:
    run = run_of(trained)
    trained.edit("mine/net.py", "nn.ReLU()", "nn.Identity(), nn.ReLU()")
    assert trained.everstep("accept", run).returncode == 0
    assert trained.run("--until", "evaluate").code != 0
    log = next(trained.folder.glob("logs/evaluate/tiny/*.log")).read_text()
    assert "does not fit the model that the code builds now" in log
    assert f"everstep retrain {result(trained, 'train.json')['digest'][:12]}" in log
    assert "Traceback" not in log
