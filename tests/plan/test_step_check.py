"""The memory of a training step of one's own, as `everstep plan` estimates it, beside that of the tensors of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.cases import GAN
from workflow_lib import config, plan
from workflow_lib.cli import main
from workflow_lib.data import ModelSpec
from workflow_lib.distributed.ranks import Peers, Ranks
from workflow_lib.plan import step_check
from workflow_lib.training.state import State
from workflow_lib.training.step_context import Context


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Snakefile").touch()


def written(**training: Any) -> plan.RunConfig:
    """Write the experiment of a GAN, and return its run."""
    settings = {"name": "x", **GAN, "training": {**GAN["training"], "ema_decay": 0.9, **training}}
    Path("x.yaml").write_text(yaml.safe_dump(settings))
    return plan.base(config.load([Path("x.yaml")]))


def test_the_estimate_of_a_step_of_ones_own_is_that_of_its_tensors() -> None:
    run, spec = written(), ModelSpec((1, 8, 8), 10)
    found = step_check.sizes(run, spec, 1)
    assert found is not None
    state = State(run, spec, ranks=Ranks(), peers=Peers(), device=torch.device("cpu"), environment={})
    assert state.step is not None
    assert state.ema is not None
    state.set_training()
    kept = step_check.Kept([*state.module.parameters(), *state.module.buffers()])
    context = Context(state)
    context.samples = run.training.batch_size
    batch = torch.randn(context.samples, 1, 8, 8), torch.zeros(context.samples).long()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        state.step.step(batch, context)
    state.optimizer.step()
    critic, generator = state.step.get_submodule("critic"), state.model
    assert found.parameters == sum(weight.numel() for part in (critic, generator) for weight in part.parameters())
    assert found.weights == sum(tensor.nbytes for tensor in state.module.state_dict().values())
    assert found.gradients == sum(weight.nbytes for weight in state.module.parameters())
    moments = [value for values in state.optimizer.state.values() for value in values.values()]
    assert found.optimizer == sum(moment.nbytes for moment in moments)
    assert found.averages == sum(average.nbytes for average in state.ema.values())
    assert found.activations == kept.most > 0


def test_plan_shows_all_models_of_a_step_or_says_that_they_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    written()
    assert main(["plan", "x.yaml"]) == 0
    told = capsys.readouterr().out
    assert 'model tests.plugins.gan {"hidden":64,"noise":16} and all else of tests.plugins.gan:Step: 9,601 ' in told
    assert "not included" not in told
    Path("teacher.safetensors").write_text("no weights")  # as a teacher that is not trained yet has none
    Path("x.yaml").write_text(
        "name: x\nmodel: {name: mlp, params: {hidden: [8]}}\n"
        "training: {step: tests.plugins.distilling:Step, step_params: {teacher: teacher.safetensors, hidden: [4]}}\n"
    )
    main(["plan", "x.yaml"])
    assert "; what tests.plugins.distilling:Step builds besides it is not included" in capsys.readouterr().out
