"""A run that starts from another run: that one is trained first, and again if its settings, code or files change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.repository import copy_repository
from tests.workflow.conftest import Project

# A network whose initial weights depend on a file, and hooks that slow each step down while there is a file `hold`.
SCALED = '''"""An mlp with scaled weights."""
from pathlib import Path

import torch

from workflow_lib.models import mlp
from workflow_lib.plugins import Section


class Params(Section):
    scale: Path = Path("scale.txt")


def build(params, spec):
    model = mlp.build(mlp.Params(hidden=[8]), spec)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(float(params.scale.read_text()))
    return model
'''
HELD = """\
import time
from pathlib import Path


def on_step_end(state):
    time.sleep(0.1 * Path("hold").exists())
"""
PRE = """\
name: pre
model: {name: mine.scaled}
training: {epochs: 4, batch_size: 16, hooks: mine.held}
"""
FINE = """\
name: tiny
model: {params: {hidden: [8]}, init: {from: config/pre.yaml, freeze: ["1.*"], lr_scale: {"*.bias": 2}}}
training: {epochs: 4, batch_size: 16, hooks: mine.held}
checkpoint: {interval_steps: 10}
evaluate: {bootstrap: 20}
export: {batch_sizes: [1, 2]}
"""


def made(folder: Path) -> Project:
    copy_repository(folder)
    project = Project(folder)
    project.write(FINE)
    (folder / "mine").mkdir()
    for name, text in {"mine/scaled.py": SCALED, "mine/held.py": HELD, "config/pre.yaml": PRE}.items():
        (folder / name).write_text(text)
    (folder / "scale.txt").write_text("1.0")
    return project


def statements(project: Project) -> dict[str, dict[str, Any]]:
    """Return the statements of the trainings by the name of their experiment."""
    paths = sorted((project.folder / "results/tiny/runs").glob("*/train.json"), key=lambda path: path.stat().st_mtime)
    return {path.parent.name.rpartition("-")[0]: json.loads(path.read_text()) for path in paths}


def trained(project: Project) -> int:
    """Return the number of runs that have a checkpoint."""
    return len(
        {path.parents[2] for path in (project.folder / "work/runs").glob("*/*/checkpoints/step-*/manifest.json")}
    )


def test_pretraining_and_fine_tuning_are_one_pipeline(tmp_path: Path) -> None:
    project, straight = made(tmp_path / "killed"), made(tmp_path / "straight")
    listed = project.everstep("plan", "config/tiny.yaml").stdout
    assert "trained first, since runs use their weights:\n  pre-" in listed

    # killed while the first run trains, and again while the second does
    hold = project.folder / "hold"
    hold.touch()
    for runs in (1, 2):
        with project.running() as running:
            running.wait_until(lambda runs=runs: trained(project) == runs)
            running.kill()
        assert len(statements(project)) == runs - 1
    hold.unlink()
    project.make()
    found = statements(project)
    fine = f"results/tiny/runs/tiny-{found['tiny']['run']}/train.json"
    straight.make(fine)
    assert {name: one["model"] for name, one in found.items()} == {
        name: one["model"] for name, one in statements(straight).items()
    }
    assert found["tiny"]["initialised"] == {
        "from": f"pre-{found['pre']['run']}",
        "digest": found["pre"]["model"],
        "taken": 4,
        "not_taken": [],
        "unused": [],
    }
    assert found["tiny"]["attempts"] > 1
    assert project.make().is_nothing
    model = next((project.folder / "results/tiny/runs").glob("tiny-*/model.safetensors"))
    assert (
        f"pre-{found['pre']['run']} ({found['pre']['model']}), 4 weights"
        in project.everstep("trace", str(model)).stdout
    )

    # the same bits again: the second run is delivered, and not trained
    pre = f"pre-{found['pre']['run']}"
    assert "will be regenerated" in project.everstep("retrain", pre).stdout
    assert ("train", pre) in project.make().jobs
    assert statements(project)["tiny"]["attempts"] == found["tiny"]["attempts"]

    # other bits of the first run train the second one in another workspace
    (project.folder / "scale.txt").write_text("0.5")
    project.make()
    after = statements(project)
    assert after["pre"]["model"] != found["pre"]["model"]
    assert after["tiny"]["code"] != found["tiny"]["code"]
    assert after["tiny"]["initialised"]["digest"] == after["pre"]["model"]
    shown = project.everstep("explain", f"tiny-{found['tiny']['run']}").stdout
    assert "The code of the model and of its hooks is the same." in shown

    # other settings of the first run are another run
    project.edit("config/pre.yaml", "epochs: 4", "epochs: 3")
    jobs = project.plan()
    assert {rule for rule, _ in jobs} == {"plan", "train", "evaluate", "export", "report"}
    assert len([run for rule, run in jobs if rule == "train"]) == 2
    assert project.everstep("validate", "config/tiny.yaml", "--set", "model.params.hidden=[4]").returncode == 2
