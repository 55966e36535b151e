"""Averaged weights start with a small decay, and resume exactly."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from tests.resume.conftest import Fresh
from tests.support.project import STOPPED

SETTINGS = {
    "model": {"name": "mlp", "params": {"hidden": [8]}},
    "optimizer": {"lr": 0.05},
    "training": {"epochs": 1, "ema_decay": 0.9, "hooks": "tests.plugins.weighing", "clip_norm": None},
}
STEPS = 17  # per epoch; the decay reaches 0.9 at step 80


def test_the_average_follows_the_weights_from_the_first_steps_on(fresh: Fresh) -> None:
    """The decay at step t is min(ema_decay, (1 + t) / (10 + t)), also after a stop in the warm-up."""
    run = fresh(SETTINGS)
    assert run.attempt({"point": "optimizer", "count": 8, "signal": "SIGTERM"}) == STOPPED
    run.finish()
    paths = sorted(run.folder.glob("weights-*.safetensors"))
    assert len(paths) == 1 + STEPS
    first, *after = [load_file(path) for path in paths]
    for name, average in load_file(run.output.with_name("model.safetensors")).items():
        expected = first[name]
        for step, weights in enumerate(after):
            decay = min(0.9, (1 + step) / (10 + step))
            expected = torch.lerp(expected, weights[name], 1 - decay)
        assert torch.equal(average, expected)
