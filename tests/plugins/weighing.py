"""A user's hooks that write the weights after each step."""

from __future__ import annotations

from safetensors.torch import save_file

from workflow_lib.training.hooks import View


def on_train_start(state: View) -> None:
    _write(state)


def on_step_end(state: View) -> None:
    _write(state)


def _write(state: View) -> None:
    weights = {name: one.detach().clone() for name, one in state.model.named_parameters()}
    save_file(weights, f"weights-{state.step:03d}.safetensors")
