"""Optimizers and learning rates."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from tests.plugins import own
from workflow_lib.config.length import Length
from workflow_lib.config.optimization import (
    SGD,
    AdamW,
    Constant,
    Cosine,
    Linear,
    Lion,
    Muon,
    OneCycle,
    OwnOptimizer,
    OwnSchedule,
    Step,
)
from workflow_lib.config.optimization import Plateau as PlateauSection
from workflow_lib.data import ModelSpec
from workflow_lib.errors import ConfigError
from workflow_lib.models import transformer
from workflow_lib.runtime.torch_internals import unwrapped_step
from workflow_lib.training import optimizer_state
from workflow_lib.training.optimizers import build_optimizer, hidden_matrices, learning_rate
from workflow_lib.training.selection import Plateau

SECTIONS = [
    AdamW(lr=0.1),
    SGD(lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    Lion(lr=0.01, weight_decay=0.1),
    Muon(lr=0.1, weight_decay=0.1),
]
STEPS = 5


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))


def weights_after(section: Any, *, bare: bool, reload_after: int | None = None) -> torch.Tensor:
    """Return the weights after five steps; the optimizer may be saved to a file and restored after some of them."""
    model = small()
    optimizer = build_optimizer(section, model)
    for number in range(STEPS):
        if number == reload_after:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = build_optimizer(section, model)
            optimizer.load_state_dict(saved)
        optimizer.zero_grad()
        model(torch.randn(4, 7)).square().sum().backward()
        (unwrapped_step(optimizer) if bare else optimizer.step)()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_an_unwrapped_step_is_the_optimizers_step(section: Any) -> None:
    assert torch.equal(weights_after(section, bare=True), weights_after(section, bare=False))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_an_optimizer_resumes_exactly_from_its_state(section: Any) -> None:
    straight = weights_after(section, bare=True)
    assert all(torch.equal(weights_after(section, bare=True, reload_after=n), straight) for n in range(1, STEPS))


def test_lion_steps_by_the_sign_of_its_average() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0]]))
    optimizer = build_optimizer(Lion(lr=0.1, betas=(0.5, 0.9), weight_decay=0.5), model)
    for gradient, expected in (([4.0, -2.0], [0.85, -0.85]), ([-0.1, 2.0], [0.7075, -0.9075])):
        model.weight.grad = torch.tensor([gradient])
        optimizer.step()
        torch.testing.assert_close(model.weight.detach(), torch.tensor([expected]))
    # averages 0.1 * 4 and 0.1 * -2, then 0.9 * those + 0.1 * the second gradient
    torch.testing.assert_close(optimizer.state[model.weight]["exp_avg"], torch.tensor([[0.35, 0.02]]))


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.Linear(5, 3))
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert [names[id(weight)] for weight in hidden_matrices(model)] == ["1.weight", "3.weight"]
    optimizer = build_optimizer(Muon(lr=0.1), model)
    model(torch.arange(3)).sum().backward()
    optimizer.step()
    kinds = {names[id(weight)]: "exp_avg" in state for weight, state in optimizer.state.items()}
    assert [name for name, is_adamw in kinds.items() if not is_adamw] == ["1.weight", "3.weight"]
    assert len(kinds) == len(list(model.parameters()))


def test_muon_takes_the_last_linear_layer_of_a_model_whose_output_is_its_embedding() -> None:
    model = transformer.build(transformer.Params(layers=2, width=8, heads=1), ModelSpec((4,), 5, "language"))
    names = {id(weight): name for name, weight in model.named_parameters()}
    of_a_block = ["attention.inward", "attention.outward", "layers.0", "layers.2"]
    expected = [f"blocks.{block}.{name}.weight" for block in range(2) for name in of_a_block]
    assert [names[id(weight)] for weight in hidden_matrices(model)] == expected


def test_muon_without_a_hidden_matrix_is_rejected() -> None:
    with pytest.raises(ConfigError, match="optimizer.name: muon is for the matrices of hidden layers"):
        build_optimizer(Muon(), nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)))


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Lion", "Muon"])
def test_a_step_does_not_import_the_compiler(name: str) -> None:
    program = (
        f"import sys, torch; from workflow_lib.config.run import {name}; from workflow_lib.training import optimizers\n"
        "from workflow_lib.runtime.torch_internals import unwrapped_step\n"
        "model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))\n"
        f"optimizer = optimizers.build_optimizer({name}(), model)\n"
        "model(torch.ones(1, 2)).sum().backward(); unwrapped_step(optimizer)(); optimizer.zero_grad()\n"
        "optimizer.load_state_dict(optimizer.state_dict()); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def rates(section: Any, steps: int, plateau: Plateau | None = None) -> list[float]:
    length = Length(steps_per_epoch=10, total=100, between_validations=10)
    return [learning_rate(section, 1.0, step, length=length, plateau=plateau or Plateau()) for step in range(steps)]


def test_a_warm_up_grows_to_the_peak_in_equal_steps() -> None:
    assert rates(Constant(warmup_epochs=0.5), 8) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0])


def test_a_cosine_ends_at_its_final_fraction() -> None:
    found = rates(Cosine(final_fraction=0.1), 101)
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert found[100] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in zip(found, found[1:], strict=False))


def test_a_line_ends_at_its_final_fraction() -> None:
    found = rates(Linear(final_fraction=0.2, warmup_epochs=2), 101)
    assert found[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert found[60] == pytest.approx(0.6)
    assert found[100] == pytest.approx(0.2)


def test_steps_come_after_whole_epochs_from_the_start() -> None:
    found = rates(Step(every_epochs=3, factor=0.1, warmup_epochs=1), 100)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert [found[step] for step in (10, 29, 30, 59, 60, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.001])


def test_a_schedule_counts_in_steps() -> None:
    assert rates(Constant(warmup_steps=4), 5) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates(Step(every_epochs=None, every_steps=3, factor=0.1), 7) == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01])
    assert rates(Linear(warmup_steps=20), 101) == rates(Linear(warmup_epochs=2), 101)


def test_one_cycle_rises_to_its_peak_and_falls_below_where_it_began() -> None:
    found = rates(OneCycle(rise_fraction=0.25, start_fraction=0.1, final_fraction=0.01, warmup_epochs=2), 101)
    assert found[:20] == pytest.approx([0.1 * (step + 1) / 20 for step in range(20)])
    assert [found[step] for step in (20, 30, 40, 70, 100)] == pytest.approx([0.1, 0.55, 1.0, 0.505, 0.01])
    assert found.index(max(found)) == 40


def test_a_plateau_multiplies_the_rate_by_its_scale() -> None:
    assert rates(PlateauSection(), 1, Plateau(scale=0.25)) == [0.25]


OWN = OwnOptimizer(name="tests.plugins.own:Heavy", lr=0.1, weight_decay=0.1, params={"betas": [0.8]})


@pytest.mark.parametrize("name", ["Adagrad", "NAdam", "RMSprop", "ASGD", "Adafactor"])
def test_an_optimizer_of_torch_by_its_path_is_that_optimizer(name: str) -> None:
    section, model = OwnOptimizer(name=f"torch.optim:{name}", lr=0.1), small()
    own = build_optimizer(section, model)
    assert type(own) is getattr(torch.optim, name)
    assert own.defaults == getattr(torch.optim, name)(small().parameters(), lr=0.1).defaults


@pytest.mark.parametrize("section", [OWN, OwnOptimizer(name="torch.optim:ASGD", lr=0.1)], ids=lambda each: each.name)
def test_the_state_of_an_optimizer_by_path_is_restored_with_its_types(section: OwnOptimizer) -> None:
    straight = weights_after(section, bare=True)
    for after in range(STEPS):
        model = small()
        optimizer = build_optimizer(section, model)
        for number in range(STEPS):
            if number == after:
                tensors = {name: value.clone() for name, value in optimizer_state.tensors(optimizer).items()}
                rest, groups = json.loads(
                    json.dumps([optimizer_state.values(optimizer), optimizer_state.settings(optimizer)])
                )
                optimizer = build_optimizer(section, model)
                optimizer_state.restore(optimizer, tensors, {})
                optimizer_state.restore_settings(optimizer, groups)
                optimizer_state.restore(optimizer, optimizer_state.tensors(optimizer), rest)
            optimizer.zero_grad()
            model(torch.randn(4, 7)).square().sum().backward()
            unwrapped_step(optimizer)()
        found = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        assert torch.equal(found, straight), after
        if section is OWN:
            assert {value.dtype for value in optimizer_state.tensors(optimizer).values()} == {torch.float64}


def test_a_state_that_no_checkpoint_can_hold_is_named() -> None:
    model = small()
    optimizer = build_optimizer(OwnOptimizer(name="tests.plugins.own:Nested", lr=0.1), model)
    model(torch.randn(4, 7)).square().sum().backward()
    optimizer.step()
    with pytest.raises(ConfigError, match="the state of Nested has `all` of weight 0, a list, which a checkpoint"):
        optimizer_state.values(optimizer)


def test_what_is_no_optimizer_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"tests.plugins.own:dull gives a dict; allowed: a torch.optim"):
        build_optimizer(OwnOptimizer.model_construct(name="tests.plugins.own:dull", lr=0.1, params={}), small())


def test_a_schedule_by_path_is_called_with_the_steps_after_the_warm_up() -> None:
    def rates(warmup: float) -> list[float]:
        section = OwnSchedule(name="tests.plugins.own:noam", warmup_epochs=warmup, params={"rise": 0.5})
        return [learning_rate(section, 2.0, step, length=Length(4, 12, 4), plateau=Plateau()) for step in range(12)]

    assert rates(0) == [2.0 * own.noam(step, 12, rise=0.5) for step in range(12)]
    assert rates(1)[4:] == [2.0 * own.noam(step, 8, rise=0.5) for step in range(8)]
    assert rates(1)[:4] == pytest.approx([2.0 * own.noam(0, 8, rise=0.5) * share for share in (0.25, 0.5, 0.75, 1)])


def test_a_schedule_that_gives_no_rate_ends_the_training() -> None:
    section = OwnSchedule(name="tests.plugins.own:downhill")
    with pytest.raises(ConfigError, match=r"tests.plugins.own:downhill returns -0.5, .* for step 9 of 12"):
        learning_rate(section, 1.0, 9, length=Length(4, 12, 4), plateau=Plateau())
