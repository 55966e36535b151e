"""`prove-resume` on training steps of one's own: exact ones pass, and one that keeps state elsewhere is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import sklearn.datasets  # noqa: F401  (imported once here, not in each forked process)
import torch
from safetensors.torch import save_file

from workflow_lib import config, prove
from workflow_lib.data import ModelSpec
from workflow_lib.models import mlp

EXPERIMENT = """
name: proof
model: {model}
training: {{epochs: 3, batch_size: 128, step: "{step}", step_params: {params}}}
"""

FORGETFUL = '''
from torch.nn import functional
from workflow_lib import TrainingStep

CALLS = []

class Step(TrainingStep):
    """Keeps the number of its calls in a global variable, which no checkpoint has."""

    def step(self, batch, context):
        inputs, targets = batch
        CALLS.append(1)
        loss = functional.cross_entropy(self.model(inputs), targets) / len(CALLS)
        loss.backward()
        context.optimizers["model"].step()
        return loss
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "Snakefile").touch()
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def verdict(project: Path, model: str, step: str, params: str = "{}", kills: int = 3) -> prove.Verdict:
    path = project / "experiment.yaml"
    path.write_text(EXPERIMENT.format(model=model, step=step, params=params))
    folder = project / "work" / "proof"
    return prove.prove(config.load([path]), kills=kills, folder=folder, seed=1, show=lambda line: None)


def test_a_gan_is_found_exact(project: Path) -> None:
    found = verdict(project, "{name: tests.plugins.gan}", "tests.plugins.gan:Step")
    assert (found.difference, found.kills) == (None, 3)


def test_a_student_is_found_exact(project: Path) -> None:
    torch.manual_seed(0)
    teacher = mlp.build(mlp.Params(hidden=[8]), ModelSpec((1, 8, 8), 10, "classification"))
    save_file(teacher.state_dict(), project / "teacher.safetensors")
    params = "{teacher: teacher.safetensors, hidden: [8]}"
    found = verdict(project, "{name: mlp, params: {hidden: [8]}}", "tests.plugins.distilling:Step", params)
    assert (found.difference, found.kills) == (None, 3)


def test_a_step_that_keeps_state_in_a_global_variable_is_found(project: Path) -> None:
    found = verdict(project, "{name: mlp, params: {hidden: [8]}}", "forgetful:Step")
    assert found.difference is not None
    assert found.difference.startswith("loss of rank 0 is the first state that differs, at step ")
