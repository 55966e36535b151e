"""Training steps of one's own: what is rejected before and in the training, and how settings apply to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from workflow_lib import ConfigError, ModelSpec, Setup, TrainingStep, config, models, plan
from workflow_lib.config.init import Init
from workflow_lib.config.optimization import AdamW
from workflow_lib.training.step_building import build_step, joined_optimizers

STATEMENT = ("run", "data", "code", "model", "sealed")  # of a training
GAN = """
name: gan
model: {name: tests.plugins.gan}
training: {step: "tests.plugins.gan:Step"}
"""


def problem(tmp_path: Path, text: str, *more: str) -> str:
    path = tmp_path / "gan.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load([path], list(more))
    return str(caught.value)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (
            "training.label_smoothing=0.1",
            "training.label_smoothing: 0.1 does not apply to a training step",
        ),
        ("training.accumulation_steps=2", "can divide it: backward passes add up; allowed: 1"),
        ("training.compile=true", "compiled code depends on the shapes that a process has computed before"),
        ("training.precision=fp16", "fp16 needs a loss scale"),
        ("training.select_metric=val_accuracy", "is not measured in classification; allowed: train_loss, val_loss"),
        (
            "tune={metric: val_accuracy, space: {optimizer.lr: {type: float, low: 0.1, high: 0.2}}}",
            "tune.metric: val_accuracy is not measured",
        ),
        ("training.parallel=fsdp", "training.parallel: 'fsdp' does not apply to a training step"),
        ("augment.mixup=0.4", "augment.mixup: 0.4 does not apply to a training step of one's own"),
        ("training.step_params={noize: 3}", "`noize` is no argument of it; did you mean `noise`?"),
        ("training.step=tests.plugins.gan:Stp", "there is no `Stp`; did you mean `Step`?"),
        ("training.step=tests.plugins.gan:build", "is not a class derived from workflow_lib.TrainingStep"),
    ],
)
def test_what_cannot_be_is_rejected_by_validation(tmp_path: Path, setting: str, says: str) -> None:
    assert says in problem(tmp_path, GAN, setting)


def test_arguments_need_a_step(tmp_path: Path) -> None:
    assert "are for training.step, which is not set" in problem(tmp_path, "name: x\n", "training.step_params={a: 3}")


def test_a_file_among_the_arguments_is_part_of_the_codes_digest(tmp_path: Path) -> None:
    from workflow_lib import plan
    from workflow_lib.plan import user_code

    (tmp_path / "Snakefile").touch()
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes(b"one")
    path = tmp_path / "student.yaml"
    params = f"{{teacher: {weights}, hidden: [8]}}"
    path.write_text(f'name: s\ntraining: {{step: "tests.plugins.distilling:Step", step_params: {params}}}\n')
    run = plan.base(config.load([path]))
    before = user_code.digest(run)
    weights.write_bytes(b"two")
    assert user_code.digest(run) != before
    assert "step" in user_code.of(run)


class Base(TrainingStep):
    def step(self, batch: Any, context: Any) -> torch.Tensor:
        return batch[0].sum()


class Listed(Base):
    def build(self, setup: Setup) -> None:
        self.parts = [nn.Linear(2, 2)]


class Loose(Base):
    def build(self, setup: Setup) -> None:
        self.running = torch.zeros(3)


class Untrained(Base):
    def build(self, setup: Setup) -> None:
        self.teacher = nn.Linear(2, 2)


class Twice(Base):
    def optimizers(self, setup: Setup) -> dict[str, torch.optim.Optimizer]:
        return {"one": setup.optimizer(self.model), "two": setup.optimizer(self.model)}


class Hidden(Base):
    def optimizers(self, setup: Setup) -> dict[str, torch.optim.Optimizer]:
        self.other = setup.optimizer(self.model)
        return {"one": setup.optimizer(self.model)}


def built(kind: type[TrainingStep], lr: float = 1e-3) -> tuple[TrainingStep, torch.optim.Optimizer]:
    step = kind()
    setup = Setup(ModelSpec((2,), 2, "classification"), torch.device("cpu"), AdamW(lr=lr), Init(), nn.Linear(2, 2))
    build_step(step, setup)
    return step, joined_optimizers(step, setup)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Listed, "Listed.parts would be missing from checkpoints: make it a torch.nn.ModuleList"),
        (Loose, 'Loose.running would be missing from checkpoints: make it a buffer: self.register_buffer("running"'),
        (Untrained, "teacher.weight requires gradients, and no optimizer has it"),
        (Twice, "model.weight is trained by two optimizers, `one` and `two`"),
        (Hidden, "Hidden.other would be missing from checkpoints: make it one of those that"),
    ],
)
def test_state_that_no_checkpoint_would_have_is_rejected(kind: type[TrainingStep], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built(kind)
    assert says in str(caught.value)


def test_an_attribute_that_is_set_after_build_is_rejected() -> None:
    step, _ = built(Base)
    step.values["count"] = 1
    step.eval()
    with pytest.raises(ConfigError, match=r"Base.count is set after `build`"):
        step.count = 1


def test_frozen_modules_stay_in_evaluation_mode() -> None:
    class Taught(Base):
        def build(self, setup: Setup) -> None:
            self.teacher = nn.Linear(2, 2).requires_grad_(False)

    step, _ = built(Taught)
    step.train()
    assert step.model.training
    assert not step.get_submodule("teacher").training


def test_each_optimizer_keeps_its_own_learning_rate_under_the_schedule() -> None:
    from workflow_lib.training.parameter_groups import set_learning_rate

    class Two(Base):
        def build(self, setup: Setup) -> None:
            self.critic = nn.Linear(2, 2)

        def optimizers(self, setup: Setup) -> dict[str, torch.optim.Optimizer]:
            critic = torch.optim.SGD(self.critic.parameters(), lr=0.5)
            return {"model": setup.optimizer(self.model, lr=0.2), "critic": critic}

    _, optimizer = built(Two, lr=0.1)
    set_learning_rate(optimizer, 0.05)  # half of optimizer.lr
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.25])


def test_a_study_of_a_step_that_validates_takes_its_loss_by_default(tmp_path: Path) -> None:
    from workflow_lib import plan

    path = tmp_path / "gan.yaml"
    path.write_text(f"{GAN}tune: {{space: {{optimizer.lr: {{type: float, low: 0.1, high: 0.2}}}}}}\n")
    assert plan.study_metric(config.load([path])) == "val_loss"


def test_the_model_of_another_run_is_built_with_its_settings_and_stays_as_in_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = {"name": "mlp", "params": {"hidden": [5], "dropout": 0.5}}
    run = plan.base(config.Experiment.model_validate({"name": "t", "model": model}))
    digest = plan.freeze(run, Path("work")).parent.name
    spec, weights = ModelSpec((3,), 2), Path("results/t/runs/t/model.safetensors")
    weights.parent.mkdir(parents=True)
    taught = models.build(run.model, spec)
    save_file(taught.state_dict(), weights)
    setup = Setup(spec, torch.device("cpu"), run.optimizer, run.model.init, nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="is not the weights of a run, whose model is known"):
        setup.trained_model(weights)
    weights.with_name("train.json").write_text(json.dumps(dict.fromkeys(STATEMENT, "") | {"digest": digest}))
    teacher, inputs = setup.trained_model(weights), torch.randn(8, 3)
    teacher.train()
    torch.testing.assert_close(teacher(inputs), taught.eval()(inputs), rtol=0, atol=0)
    assert not any(weight.requires_grad for weight in teacher.parameters())
