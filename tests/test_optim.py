"""Optimizers and learning rates."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from workflow_lib.config.sections import SGD, AdamW, Constant, Cosine
from workflow_lib.config.sections import Plateau as PlateauSection
from workflow_lib.optim import Plateau, bare_step, build_optimizer, learning_rate


def weights_after(section: AdamW | SGD, *, bare: bool) -> torch.Tensor:
    torch.manual_seed(0)
    model = torch.nn.Linear(7, 3)
    optimizer = build_optimizer(section, model.parameters())
    step = bare_step(optimizer) if bare else optimizer.step
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 7)).square().sum().backward()
        step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("section", [AdamW(lr=0.1), SGD(lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1)])
def test_a_bare_step_is_the_optimizers_step(section: AdamW | SGD) -> None:
    assert torch.equal(weights_after(section, bare=True), weights_after(section, bare=False))


def test_a_step_does_not_import_the_compiler() -> None:
    program = (
        "import sys, torch; from workflow_lib.config.sections import AdamW; from workflow_lib import optim\n"
        "model = torch.nn.Linear(2, 2); optimizer = optim.build_optimizer(AdamW(), model.parameters())\n"
        "model(torch.ones(1, 2)).sum().backward(); optim.bare_step(optimizer)(); optimizer.zero_grad()\n"
        "optimizer.load_state_dict(optimizer.state_dict()); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def rates(section: Constant | Cosine | PlateauSection, steps: int, plateau: Plateau | None = None) -> list[float]:
    return [
        learning_rate(section, 1.0, step, steps_per_epoch=10, epochs=10, plateau=plateau or Plateau())
        for step in range(steps)
    ]


def test_a_warm_up_grows_to_the_peak_in_equal_steps() -> None:
    assert rates(Constant(warmup_epochs=0.5), 8) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0])


def test_a_cosine_ends_at_its_final_fraction() -> None:
    found = rates(Cosine(final_fraction=0.1), 101)
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert found[100] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in zip(found, found[1:], strict=False))


def test_a_plateau_lowers_the_rate_when_its_patience_is_over() -> None:
    plateau = Plateau()
    scales = []
    for value in (1.0, 0.9, 0.9, 0.95, 0.91, 0.8, 0.85, 0.85):
        plateau.observe(value, higher_is_better=False, factor=0.5, patience=1)
        scales.append(plateau.scale)
    assert scales == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25]
    assert rates(PlateauSection(), 1, plateau) == [0.25]
