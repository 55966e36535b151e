"""A person's own model, in a folder of their own: it inherits the laws and is trained; here nothing is touched."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.support.repository import ROOT

MODEL = '''
"""Two linear layers."""

import math

from pydantic import Field

from workflow_lib.plugins import Section


class Params(Section):
    width: int = Field(32, ge=1, description="hidden units")


def build(params, spec):
    from torch import nn

    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(spec.input_shape), params.width),
        nn.ReLU(),
        nn.Linear(params.width, spec.outputs),
    )
'''
LAWS = """
from tests.models.contract import ModelContract


class TestMine(ModelContract):
    name = "mypackage.mine"
    params = {"width": 64}
    shapes = [(1, 8, 8)]
"""
EXPERIMENT = """
name: mine
model: {name: mypackage.mine, params: {width: 5}}
training: {epochs: 1}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with a model of its own and a test of it."""
    (tmp_path / "mypackage").mkdir()
    for name, text in {
        "Snakefile": "",
        "mine.yaml": EXPERIMENT,
        "mypackage/mine.py": MODEL,
        "test_mine.py": LAWS,
    }.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run(folder: Path, *command: str) -> tuple[int, str]:
    """Return the exit code and the output of the command, run in the folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return shown.returncode, shown.stdout + shown.stderr


def everstep(folder: Path, *command: str) -> None:
    code, said = run(folder, "workflow_lib", *command)
    assert code == 0, said


def test_it_inherits_the_laws_and_the_one_that_it_breaks_is_named(folder: Path) -> None:
    (folder / "mypackage/mine.py").write_text(MODEL.replace("description=", "title="))
    code, said = run(folder, "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py", "-k", "not exported")
    assert code == 1, said
    assert "FAILED test_mine.py::TestMine::test_every_setting_is_described" in said, said
    assert re.search(r"\b1 failed, 1\d passed", said), said


def test_it_is_trained_by_its_import_path(folder: Path) -> None:
    everstep(folder, "freeze", "--experiment", "mine.yaml", "--output", "results/mine/plan.json")
    (planned,) = json.loads((folder / "results/mine/plan.json").read_text())["runs"]
    data, output = f"results/mine/data/{planned['data_id']}.json", f"results/mine/runs/{planned['id']}/train.json"
    experiment = ("--experiment", "mine.yaml")
    everstep(folder, "preprocess", *experiment, "--data", planned["data_id"], "--output", data)
    everstep(folder, "train", *experiment, "--run", planned["id"], "--data", data, "--output", output)
    weights = load_file((folder / output).with_name("model.safetensors"))
    assert {one.shape for one in weights.values()} == {(5, 64), (5,), (10, 5), (10,)}
