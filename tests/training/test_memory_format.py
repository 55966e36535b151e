"""Weights in channels_last keep their order in memory, and that of their moments and averages, over a resume."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.small_training import everything, trained, trainer
from workflow_lib import config, plan
from workflow_lib.config.compose import Source
from workflow_lib.config.experiment import Runtime
from workflow_lib.config.yaml import Origins
from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.errors import ConfigError
from workflow_lib.plan import preview
from workflow_lib.training import optimizer_state
from workflow_lib.training.trainer import Trainer

CNN: dict[str, Any] = {
    "model": {"name": "cnn", "params": {"channels": [4, 4]}},
    "training": {"memory_format": "channels_last", "ema_decay": 0.9},
}


def strides(done: Trainer) -> dict[str, tuple[int, ...]]:
    """Return the strides of weights, moments and averages."""
    state = done.state
    named = {
        **dict(state.model.named_parameters()),
        **{f"average {name}": value for name, value in (state.ema or {}).items()},
        **optimizer_state.tensors(state.optimizer),
    }
    return {name: value.stride() for name, value in named.items()}


def test_a_resume_has_the_bits_and_the_strides_of_a_straight_training(tmp_path: Path) -> None:
    straight = trainer(tmp_path / "straight", CNN)
    straight.fit()
    of_convolutions = [name for name, weight in straight.state.model.named_parameters() if weight.dim() == 4]
    for name in of_convolutions:
        weight = straight.state.model.get_parameter(name)
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()
    # the weight, its average and two moments of each; all others are contiguous
    assert len(of_convolutions) == 2
    laid_out = [stride for stride in strides(straight).values() if len(stride) == 4]
    assert len(laid_out) == 8
    assert all(stride[1] == 1 for stride in laid_out)

    shared_state = SharedState(1)
    first = trainer(tmp_path / "stopped", CNN, shared_state=shared_state)
    first._passes.step = stopping(first._passes.step, shared_state)  # type: ignore[method-assign]
    assert first.fit().ended == "stopped"
    resumed = trainer(tmp_path / "stopped", CNN)
    resumed.fit()
    assert everything(resumed) == everything(straight)
    assert strides(resumed) == strides(straight)


def stopping(step: Any, shared_state: SharedState) -> Any:
    """Return the step, which asks for a stop at its fifth call."""
    calls = []

    def counted(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 5:
            shared_state._handle(signal.SIGTERM, None)
        return step(*given)

    return counted


def test_contiguous_weights_are_the_default_and_leave_no_strides(tmp_path: Path) -> None:
    plain = {**CNN, "training": {"ema_decay": 0.9}}
    default = trained(tmp_path / "default", plain)
    assert "optimizer_strides" not in default["record"]
    chosen = {**CNN, "training": {"ema_decay": 0.9, "memory_format": "contiguous"}}
    assert trained(tmp_path / "chosen", chosen) == default
    assert "optimizer_strides" in trained(tmp_path / "last", CNN)["record"]


def test_a_model_without_convolutions_is_rejected(tmp_path: Path) -> None:
    settings = {"model": {"name": "mlp"}, "training": {"memory_format": "channels_last"}}
    said = r"^training.memory_format: channels_last is the order .* has none; allowed: contiguous$"
    with pytest.raises(ConfigError, match=said):
        trainer(tmp_path, settings)
    run = plan.base(config.Experiment.model_validate({"name": "x", "data": {"name": "digits"}, **settings}))
    (problem,) = preview.look([run], Runtime(), tmp_path).problems
    assert re.search(said, problem)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"training": {"parallel": "fsdp"}}, "cannot be combined with training.parallel=fsdp"),
        ({"data": {"name": "text", "params": {"path": "x.txt"}}}, "is for images, and the data has texts"),
    ],
)
def test_settings_that_exclude_it_are_rejected_by_validation(settings: dict[str, Any], said: str) -> None:
    given = {"name": "x", **settings, "training": {**settings.get("training", {}), "memory_format": "channels_last"}}
    if "data" in settings:
        given["model"] = {"name": "transformer"}
    with pytest.raises(ConfigError) as error:
        config.validate(Source(given, Origins()), None)
    assert f"training.memory_format: channels_last {said}" in str(error.value)
