"""Frozen weights, and groups of weights with a rate and a decay of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from workflow_lib.config.init import Init
from workflow_lib.config.optimization import SGD, AdamW, Lion, Muon, OwnOptimizer
from workflow_lib.errors import ConfigError
from workflow_lib.training.optimizers import build_optimizer
from workflow_lib.training.parameter_groups import (
    freeze,
    learning_rate_of,
    parameter_groups,
    set_learning_rate,
    set_training,
)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(7, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
    return nn.Sequential(encoder, nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [named for named in model.named_parameters(remove_duplicate=False) if named[1].requires_grad]


def test_a_module_that_is_frozen_as_a_whole_computes_as_in_validation() -> None:
    model = small()
    frozen = freeze(model, ["0.*", "2.weight", "2.bias"])
    set_training(model, frozen)
    assert frozen == [model[0]]
    # the statistics of 2 are not frozen, so they go on
    assert [(name, module.training) for name, module in model.named_modules() if name in ("0", "0.1", "0.2", "2")] == [
        ("0", False), ("0.1", False), ("0.2", False), ("2", True),
    ]  # fmt: skip
    assert [name for name, _ in trained(model)] == ["1.weight", "1.bias", "3.weight", "3.bias"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(4, 7)).sum().backward()
    build_optimizer(AdamW(), model).step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"1.weight", "2.running_mean", "3.weight", "3.bias"} <= changed
    assert not {"2.weight", "2.bias"} & changed
    assert not any(name.startswith("0.") for name in changed)


def test_a_tied_weight_is_frozen_under_any_of_its_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head, self.norm = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False), nn.LayerNorm(4)
            self.head.weight = self.table.weight

    model = Tied()
    assert freeze(model, ["head.*"]) == [model.table, model.head]
    assert [name for name, _ in trained(model)] == ["norm.weight", "norm.bias"]


def test_without_patterns_there_are_no_groups() -> None:
    model = small()
    assert parameter_groups(Init(), trained(model)) == list(model.parameters())
    assert [*build_optimizer(AdamW(), model).param_groups[0]] == [
        *build_optimizer(AdamW(), model, parameter_groups(Init(), trained(model))).param_groups[0]
    ]


@pytest.mark.parametrize("section", [AdamW(), SGD(), Lion(), Muon()], ids=lambda section: section.name)
def test_each_group_steps_with_its_own_rate_and_decay(section: Any) -> None:
    """A weight moves as it does if its rate and decay are those of the whole optimizer."""
    init = Init(lr_scale={"0.*": 0.5, "3.*": 2.0}, weight_decay={"*.bias": 0.0, "1.weight": 0.3})

    def stepped(init: Init, **settings: Any) -> dict[str, torch.Tensor]:
        model, own = small().eval(), section.model_copy(update={"lr": 0.1, "weight_decay": 0.2, **settings})
        optimizer = build_optimizer(own, model, parameter_groups(init, trained(model)))
        for step in range(3):
            set_learning_rate(optimizer, own.lr)
            optimizer.zero_grad()
            for number, weight in enumerate(model.parameters()):
                weight.grad = torch.cos(torch.arange(weight.numel()) + step + number).view_as(weight)
            optimizer.step()
        assert learning_rate_of(optimizer) == own.lr
        return {name: weight.detach() for name, weight in model.named_parameters()}

    found = stepped(init)
    for name, weight in found.items():
        scale = {"0": 0.5, "3": 2.0}.get(name[0], 1.0)
        decay = 0.0 if name.endswith("bias") else 0.3 if name == "1.weight" else 0.2
        assert torch.equal(weight, stepped(Init(), lr=0.1 * scale, weight_decay=decay)[name]), name


def test_there_is_one_group_for_each_rate_and_decay_in_the_order_of_the_model() -> None:
    model = small()
    init = Init(lr_scale={"0.0.*": 0.5, "3.*": 0.5}, weight_decay={"*.bias": 0.0})
    names = {id(weight): name for name, weight in model.named_parameters()}
    groups = [
        (group["lr_scale"], group.get("weight_decay"), [names[id(weight)] for weight in group["params"]])
        for group in parameter_groups(init, trained(model))
        if isinstance(group, dict)
    ]
    assert groups == [
        (0.5, None, ["0.0.weight", "3.weight"]),
        (0.5, 0.0, ["0.0.bias", "3.bias"]),
        (1.0, None, ["0.1.weight", "1.weight", "2.weight"]),
        (1.0, 0.0, ["0.1.bias", "1.bias", "2.bias"]),
    ]


def test_muon_without_other_weights_has_no_adamw() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    freeze(model, ["1.*"])
    optimizer = build_optimizer(Muon(), model, parameter_groups(Init(), trained(model)))
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    assert [*optimizer.state] == [model[0].weight]


def test_decays_for_an_optimizer_without_decay_are_rejected() -> None:
    model = small()
    groups = parameter_groups(Init(weight_decay={"*.bias": 0.0}), trained(model))
    with pytest.raises(ConfigError, match=r"model\.init\.weight_decay: torch\.optim:Rprop has no weight_decay"):
        build_optimizer(OwnOptimizer(name="torch.optim:Rprop", lr=0.1), model, groups)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (Init(freeze=["encoder.*"]), r"freeze: `encoder\.\*` matches no weight or buffer of the model; the nearest: "),
        (Init(freeze=["*"]), "freeze: no weight is left to train"),
        (Init(lr_scale={"1.wieght": 0.1}), r"lr_scale: `1\.wieght` matches no trained weight; the nearest: 1\.weight"),
        (Init(freeze=["1.*"], weight_decay={"1.*": 0}), "weight_decay: `1.*` matches no trained weight"),
        (Init(lr_scale={"1.*": 0.1, "*.bias": 0.2}), r"lr_scale: `1\.\*` gives 1\.bias 0\.1 and `\*\.bias` gives it"),
    ],
)
def test_patterns_that_are_wrong_are_rejected(init: Init, message: str) -> None:
    def build() -> None:
        model = small()
        freeze(model, init.freeze)
        parameter_groups(init, trained(model))

    with pytest.raises(ConfigError, match=message):
        build()
