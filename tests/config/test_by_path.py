"""Loss, optimizer and schedule by an import path: accepted, part of the run, or rejected with one message."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.config.conftest import load, problems
from workflow_lib import config
from workflow_lib.config.measures import Metric, maximized
from workflow_lib.config.metric_checks import own_metric_problems
from workflow_lib.config.metrics import best_row, is_better
from workflow_lib.config.run import Training
from workflow_lib.plan import user_code
from workflow_lib.plan.expansion import base

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training: {loss: tests.plugins.own:smothed}", "training.loss: "),
        ("training: {loss: tests.plugins.own:smothed}", "no `smothed`; did you mean `smoothed`?"),
        ("training: {loss: nothing.here:loss}", "training.loss: no module `nothing.here` to import for a loss"),
        ("training: {loss: dice}", "training.loss: 'dice' is not allowed"),
        (
            "training: {loss: tests.plugins.own:smoothed, loss_params: {pover: 2}}",
            "training.loss_params: tests.plugins.own:smoothed: `pover` is no argument of it; did you mean `power`?",
        ),
        (
            "training: {loss: tests.plugins.own:smoothed, loss_params: {targets: 2}}",
            "training.loss_params: tests.plugins.own:smoothed: `targets` is passed by Everstep; leave it out",
        ),
        ("training: {loss_params: {power: 2}}", "training.loss_params: are for training.loss, which is not set"),
        (
            "training: {loss: tests.plugins.own:smoothed, label_smoothing: 0.1}",
            "training.label_smoothing: 0.1 changes the loss of the task, and training.loss=tests.plugins.own:smoothed",
        ),
        (
            "training: {loss: tests.plugins.own:smoothed, class_weights: balanced}",
            "training.class_weights: 'balanced' changes the loss of the task",
        ),
        ("optimizer: {name: adagrad}", "allowed: adamw, sgd, lion, muon, package.module:Name"),
        ("optimizer: {name: torch.optim:Adagard}", "optimizer.name: "),
        (
            "optimizer: {name: torch.optim:Adagrad, params: {lr: 1}}",
            "optimizer.params: torch.optim:Adagrad: `lr` is passed by Everstep; leave it out",
        ),
        (
            "optimizer: {name: torch.optim:Adagrad, params: {momentum: 1}}",
            "optimizer.params: torch.optim:Adagrad: `momentum` is no argument of it",
        ),
        ("optimizer: {name: torch.optim:Adagrad, momentum: 1}", "optimizer.momentum: no such setting"),
        ("optimizer: {name: torch.optim:LBFGS}", "torch.optim:LBFGS computes the loss several times in a step"),
        (
            "optimizer: {name: torch.optim:Rprop, weight_decay: 0.1}",
            "torch.optim:Rprop has no argument `weight_decay`; leave optimizer.weight_decay out",
        ),
        (
            "optimizer: {name: torch.optim:Rprop}\nmodel: {init: {weight_decay: {'*bias': 0}}}",
            "model.init.weight_decay: optimizer.name=torch.optim:Rprop has no weight decay",
        ),
        ("optimizer: {name: tests.plugins.own:noam}", "tests.plugins.own:noam has no argument `lr`"),
        (
            "optimizer: {name: tests.plugins.own:Heavy}\ntraining: {parallel: fsdp}",
            "training.parallel: fsdp shards each weight, and optimizer.name=tests.plugins.own:Heavy may need",
        ),
        ("schedule: {name: torch.optim.lr_scheduler:StepLR}", "is a class; a schedule is a function"),
        ("schedule: {name: tests.plugins.own:noam, params: {rize: 1}}", "did you mean `rise`?"),
        ("schedule: {name: tests.plugins.own:a_word}", "tests.plugins.own:a_word returns a str, not a number, for"),
        ("schedule: {name: tests.plugins.own:noam, params: {rise: up}}", "tests.plugins.own:noam failed: "),
        ("schedule: {name: tests.plugins.own:noam, factor: 2}", "schedule.factor: no such setting"),
        ("training: {metrics: [f1_makro]}", "training.metrics[0]: no metric `f1_makro`; did you mean `f1_macro`?"),
        ("training: {metrics: [rmse]}", "training.metrics[0]: rmse is not for classification; allowed: f1_macro, "),
        ("training: {metrics: [auroc, auroc]}", "training.metrics: two metrics are called `auroc`; give one of them"),
        (
            "training: {metrics: [{auroc: {tresholds: 5}}]}",
            "torchmetrics.classification:MulticlassAUROC: `tresholds` is no argument of it; did you mean `thresholds`?",
        ),
        ("training: {metrics: ['torchmetrics.classification:MulticlasAUROC']}", "did you mean `MulticlassAUROC`?"),
        ("training: {metrics: ['tests.plugins.own:spread']}", "write maximize: true or false beside its name"),
        ("training: {metrics: ['tests.plugins.own:Mute']}", "tests.plugins.own:Mute has no `state_dict`, "),
        (
            "training: {metrics: [{name: auroc, label: accuracy}]}",
            "training.metrics[0]: classification has a metric `accuracy` already",
        ),
        (
            "training: {loss: tests.plugins.own:smoothed, metrics: [{name: auroc, label: own_loss}]}",
            "training.metrics[0]: classification has a metric `own_loss` already",
        ),
        (
            "model: {name: tests.plugins.gan}\ntraining: {step: tests.plugins.gan:Step, metrics: [auroc]}",
            "training.metrics: do not apply to training.step=tests.plugins.gan:Step, which validates by itself",
        ),
        (
            "training: {metrics: [auroc], select_metric: val_aurok}",
            "training.select_metric: val_aurok is not measured in classification; did you mean `val_auroc`? Allowed: "
            "train_loss, val_loss, val_accuracy, val_auroc",
        ),
        (
            "training: {metrics: [f1_macro], select_metric: val_f1}",
            "training.select_metric: val_f1 is not measured in classification; did you mean `val_f1_macro`? Allowed: ",
        ),
        ("training: {metrics: [f1]}", "training.metrics[0]: no metric `f1`; did you mean `f1_macro`?"),
        (
            "training: {early_stopping: {metric: val_auroc}}",
            "training.early_stopping.metric: val_auroc is not measured in classification",
        ),
        (
            "tune: {metric: val_auroc, space: {optimizer.lr: {type: float, low: 0.1, high: 1}}}",
            "tune.metric: val_auroc is not measured in classification",
        ),
    ],
)
def test_what_cannot_be_is_rejected_with_one_message(text: str, said: str) -> None:
    lines = problems(f"name: a\n{text}\n")
    assert len(lines) == 1
    assert said in lines[0]


def test_loss_optimizer_and_schedule_are_part_of_a_runs_code_and_settings() -> None:
    text = (
        "name: a\n"
        "training: {loss: tests.plugins.own:smoothed, loss_params: {power: 2}}\n"
        "optimizer: {name: tests.plugins.own:Heavy, lr: 0.2, params: {betas: [0.8]}}\n"
        "schedule: {name: tests.plugins.own:noam, warmup_epochs: 1, params: {rise: 0.2}}\n"
    )
    run = base(load(text))
    assert user_code.objects_of(run) == {
        "loss": "tests.plugins.own:smoothed",
        "optimizer": "tests.plugins.own:Heavy",
        "schedule": "tests.plugins.own:noam",
    }
    assert {"loss", "optimizer", "schedule"} <= user_code.of(run).keys()
    identity = config.identity(run)
    assert identity["training"]["loss_params"] == {"power": 2}
    assert identity["optimizer"] == {
        "name": "tests.plugins.own:Heavy",
        "lr": 0.2,
        "weight_decay": None,
        "params": {"betas": [0.8]},
    }


def test_an_override_of_the_name_keeps_what_both_have() -> None:
    text = "name: a\noptimizer: {name: sgd, lr: 0.5, momentum: 0.5}\n"
    changed = load(text, "optimizer.name=torch.optim:Adagrad").optimizer
    assert (changed.name, changed.lr) == ("torch.optim:Adagrad", 0.5)
    back = load("name: a\noptimizer: {name: torch.optim:Adagrad, lr: 0.5, params: {eps: 1}}\n", "optimizer.name=sgd")
    assert (back.optimizer.name, back.optimizer.lr) == ("sgd", 0.5)


def test_paths_can_be_swept() -> None:
    from workflow_lib import plan

    losses = "[null, 'tests.plugins.own:smoothed', 'torch.nn:CrossEntropyLoss']"
    text = f"name: a\nsweep: {{grid: {{training.loss: {losses}, optimizer.name: [sgd, 'torch.optim:NAdam']}}}}\n"
    assert len({run.digest for run in plan.expand(load(text))}) == 6


def test_a_metric_has_three_forms_and_may_choose_epochs_and_trials() -> None:
    text = """
name: a
training:
  metrics:
  - f1_macro
  - auroc: {thresholds: 50}
  - {name: tests.plugins.own:spread, label: wide, maximize: false, params: {power: 2}}
  - tests.plugins.own:Streak
  select_metric: val_streak
  early_stopping: {metric: val_wide}
tune: {metric: val_auroc, space: {optimizer.lr: {type: float, low: 0.1, high: 1}}}
"""
    training = load(text).training
    assert [(metric.label, metric.maximize) for metric in training.metrics] == [
        ("f1_macro", True),
        ("auroc", True),
        ("wide", False),
        ("streak", True),
    ]
    assert maximized(training) == ["val_f1_macro", "val_auroc", "val_streak"]
    assert load(f"name: a\ntraining: {json.dumps(training.model_dump(mode='json'))}").training == training
    objects = user_code.objects_of(base(load(text)))
    assert objects == {"metric wide": "tests.plugins.own:spread", "metric streak": "tests.plugins.own:Streak"}


def test_a_metric_that_repeats_one_of_the_test_split_is_only_a_curve() -> None:
    assert not metric_checks_of("regression", "r2")
    assert "has a metric `r2` already" in metric_checks_of(
        "regression", {"name": "tests.plugins.own:Streak", "label": "r2"}
    )


def metric_checks_of(task: str, metric: Any) -> str:
    return " ".join(what for _, what in own_metric_problems(Training(metrics=[Metric.model_validate(metric)]), task))


def test_the_direction_of_a_metric_of_the_user_decides_which_value_is_better() -> None:
    rows = [{"val_x": 1.0}, {"val_x": None}, {"val_x": 3.0}, {"val_x": math.nan}]
    assert best_row(rows, "val_x") == rows[0]
    assert best_row(rows, "val_x", ["val_x"]) == rows[2]
    assert is_better("val_x", 2.0, None)
    assert not is_better("val_x", None, 2.0, ["val_x"])
    assert is_better("val_x", 3.0, 2.0, ["val_x"])


def test_a_metric_that_is_rejected_is_not_offered() -> None:
    selected, _ = problems("name: a\ntraining: {metrics: [f1_macro, r2], select_metric: val_f2}\n")
    assert selected.endswith("allowed: train_loss, val_loss, val_accuracy, val_f1_macro")
