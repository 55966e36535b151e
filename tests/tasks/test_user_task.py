"""A task of the user's project, named by its import path."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.repository import ROOT
from workflow_lib import config, plan, plugins, tasks
from workflow_lib.config.metrics import is_lower_better
from workflow_lib.plan import user_code
from workflow_lib.tasks import regression

TASK = """
from dataclasses import replace

from workflow_lib.tasks import regression

TASK = replace(regression.TASK, curve=("coverage", "Coverage"), larger_is_better=True)
NUMBER = 3
"""
DATA = """
from workflow_lib.plugins import Section

class Params(Section):
    "No settings."

def task(params):
    return "{task}"

def open_source(params, root):
    import numpy as np
    from workflow_lib.data import from_arrays
    inputs = np.arange(80, dtype=np.float32).reshape(40, 2)
    return from_arrays(inputs, inputs[:, 0] * 2, task="{task}")
"""
CONTRACT = """
from tests.tasks.contract import TaskContract

class TestQuantile(TaskContract):
    task = "mytasks.quantile:TASK"
"""
HERE = replace(regression.TASK, curve=("only_here", "Only here"), larger_is_better=True)
EXPERIMENT = "name: t\ndata: {name: mine.data}\ntraining: {epochs: 2, batch_size: 8}\n"


def write(folder: Path, task: str = "mine.quantiles:TASK") -> None:
    (folder / "mine").mkdir(exist_ok=True)
    (folder / "mine/quantiles.py").write_text(TASK)
    (folder / "mine/data.py").write_text(DATA.format(task=task))
    (folder / "experiment.yaml").write_text(EXPERIMENT)


def everstep(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "workflow_lib", *arguments, "experiment.yaml"]
    done = subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_users_task_is_found(tmp_path: Path) -> None:
    write(tmp_path)
    code, told = everstep(tmp_path, "validate")
    assert code == 0, told


def test_the_task_of_the_document_works_outside_of_the_repository(tmp_path: Path) -> None:
    """As docs/extending.md says of it: with its import path, and no file in workflow_lib."""
    document = (ROOT / "docs/extending.md").read_text()
    write(tmp_path, "mytasks.quantile:TASK")
    (tmp_path / "mytasks").mkdir()
    text = document.partition("`workflow_lib/tasks/quantile.py`:\n\n```python\n")[2].partition("```")[0]
    (tmp_path / "mytasks/quantile.py").write_text(text)
    (tmp_path / "test_quantile.py").write_text(CONTRACT)
    code, told = everstep(tmp_path, "validate")
    assert code == 0, told
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "test_quantile.py"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("mine.quantile:TASK", "no module `mine.quantile` to import for a task"),
        ("mine.quantiles:TASKS", "has no `TASKS`; task `mine.quantiles:TASKS` needs a Task"),
        ("mine.quantiles:NUMBER", "is a int: `NUMBER`"),
        ("quantile", "task() says 'quantile'; allowed: classification, language"),
    ],
)
def test_a_task_that_is_not_there_is_rejected_before_the_training(tmp_path: Path, task: str, message: str) -> None:
    write(tmp_path, task)
    code, told = everstep(tmp_path, "validate")
    assert (code, "Traceback" in told) == (2, False), told
    assert message in told


def test_the_code_of_a_users_task_is_part_of_the_workspace(tmp_path: Path) -> None:
    write(tmp_path)
    script = (
        "from workflow_lib import config, plan; from workflow_lib.plan import user_code; from pathlib import Path;"
        "run = plan.expand(config.load([Path('experiment.yaml')]))[0].config;"
        "print(sorted(user_code.of(run)), user_code.digest(run))"
    )

    def digest() -> str:
        command = [sys.executable, "-c", script]
        environment = {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    before = digest()
    assert before.startswith("['model', 'task'] ")
    (tmp_path / "mine/quantiles.py").write_text(TASK + "LEVEL = 0.5\n")
    assert digest() != before


def test_a_metric_of_a_users_task_keeps_its_direction() -> None:
    """The task is that of this module's `HERE`."""
    path = f"{__name__}:HERE"
    assert tasks.load(path) is HERE
    assert not is_lower_better("val_only_here")
    assert path not in plugins.task_names()


def test_a_shipped_task_adds_no_code_of_a_user() -> None:
    run = plan.base(config.Experiment.model_validate({"name": "t"}))
    assert user_code.objects_of(run) == {}
