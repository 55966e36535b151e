"""`prove-resume` must pass for exact runs, and must name planted faults."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import sklearn.datasets  # noqa: F401  (imported once here, not in each forked process)
import torch

from tests.support.recorded_graph import RecordedGraph
from tests.support.warm import ROOT, until
from workflow_lib import config, prove
from workflow_lib.config import Experiment
from workflow_lib.prove import child, trace
from workflow_lib.runtime.clock import start_s
from workflow_lib.store.lease import is_alive
from workflow_lib.training import batches, graphs, snapshot
from workflow_lib.training.state import State

EXPERIMENT = """
name: proof
model: {{name: {model}, params: {params}}}
optimizer: {{lr: {lr}}}
schedule: {schedule}
training: {{epochs: 3, batch_size: 128, accumulation_steps: 2, ema_decay: 0.9, precision: {precision}{more}}}
"""

NOISY_MODEL = """
import random
from torch import nn
from workflow_lib.plugins import Section

class Params(Section):
    pass

class Noisy(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.layer = nn.Linear(64, spec.outputs)
    def forward(self, inputs):
        return self.layer(inputs.flatten(1)) * (1 + random.SystemRandom().random())

def build(params, spec):
    return Noisy(spec)
"""

UNSEEDED_DATA = """
import numpy as np
from workflow_lib.plugins import Section
from workflow_lib.data import from_arrays

class Params(Section):
    pass

def open_source(params, root):
    inputs = np.random.default_rng().normal(size=(300, 1, 4, 4)).astype(np.float32)
    return from_arrays(inputs, np.arange(300) % 3, classes=("a", "b", "c"))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "Snakefile").touch()
    (tmp_path / "noisy").mkdir()
    (tmp_path / "noisy" / "model.py").write_text(NOISY_MODEL)
    (tmp_path / "noisy" / "data.py").write_text(UNSEEDED_DATA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def experiment(
    project: Path,
    *,
    model: str = "mlp",
    params: str = "{hidden: [16], dropout: 0.2}",
    schedule: str = "{name: cosine}",
    precision: str = "fp32",
    more: str = "",
    data: str = "",
    lr: str = "0.01",
) -> Experiment:
    path = project / "experiment.yaml"
    text = EXPERIMENT.format(model=model, params=params, schedule=schedule, precision=precision, more=more, lr=lr)
    path.write_text(text + data)
    return config.load([path])


def verdict(given: Experiment, kills: int = 2) -> prove.Verdict:
    return prove.prove(given, kills=kills, folder=Path("work") / "proof", seed=1, show=lambda line: None)


def test_an_exact_run_is_found_exact_and_leaves_nothing_behind(project: Path) -> None:
    found = verdict(experiment(project, model="cnn", params="{channels: [4]}"), kills=4)
    assert found.difference is None
    assert found.kills == 4
    assert found.attempts >= 5
    assert not (project / "work" / "proof").exists()


def test_the_result_says_if_fewer_kills_struck_than_were_asked_for() -> None:
    assert "2 kills (the training ended before the other 4), 3 attempts" in str(prove.Verdict(17, 2, 6, 3, None))
    assert "6 kills, 7 attempts" in str(prove.Verdict(17, 6, 6, 7, None))


def test_steps_of_a_graph_are_proved_without_reading_the_device_in_them(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that records operations is where a CUDA graph would be."""
    chain, is_recording = trace._chain, [False]

    class Marking(RecordedGraph):
        def watched(self, function: Callable[[], Any]) -> Any:
            is_recording[0] = True
            try:
                return super().watched(function)
            finally:
                is_recording[0] = False

        def replay(self) -> None:
            super().replay()
            with Path("replays").open("a") as file:
                file.write(f"{self.replays}\n")

    def read(hasher: Any, tensor: torch.Tensor) -> Any:
        assert not is_recording[0], "a value is read in a step that is captured"
        return chain(hasher, tensor)

    monkeypatch.setattr(trace, "_chain", read)
    monkeypatch.setattr(graphs, "graph_for", lambda *given, **named: Marking())
    found = verdict(experiment(project, model="cnn", params="{channels: [4]}"), kills=2)
    assert found.difference is None
    assert found.kills == 2
    attempts = Path("replays").read_text().split().count("1")
    assert attempts == 1 + found.attempts  # the straight training, and those that were killed


Plant = Callable[[pytest.MonkeyPatch], None]


def forgets(name: str, forget: Callable[[State], Any]) -> Plant:
    """Return a plant that loses a part of the state after each restore."""
    restore = snapshot.restore

    def forgetful(state: State, loaded: Any) -> None:
        restore(state, loaded)
        forget(state)

    return lambda patch: patch.setattr(snapshot, "restore", forgetful)


def without_generator(name: str) -> Plant:
    original = snapshot.restore_rng

    def restore(state: dict[str, torch.Tensor]) -> None:
        now = snapshot.capture_rng(torch.device("cpu"))
        original({**state, name: now[name]})

    return lambda patch: patch.setattr(snapshot, "restore_rng", restore)


def set_cursor(**changes: int) -> Callable[[State], None]:
    def change(state: State) -> None:
        for name, by in changes.items():
            setattr(state.progress.cursor, name, getattr(state.progress.cursor, name) + by)

    return change


def forget_moments(state: State) -> None:
    for moments in state.optimizer.state.values():
        moments["exp_avg"].zero_()


def forget_average(state: State) -> None:
    assert state.ema is not None
    for value in state.ema.values():
        value.zero_()


def reset_buffers(state: State) -> None:
    for name, buffer in state.model.named_buffers():
        if name.endswith("running_mean"):
            buffer.zero_()


def random_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        batches, "epoch_order", lambda seed, epoch, n: torch.tensor(random.SystemRandom().sample(range(n), n))
    )


PLANTED: dict[str, tuple[Plant, dict[str, str], str]] = {
    "sampler off by one batch": (forgets("cursor", set_cursor(sample=128)), {}, "samples|step"),
    "an order that no seed decides": (random_order, {}, "samples"),
    "torch's generator": (without_generator("torch"), {}, "generators"),
    "python's generator": (without_generator("python"), {}, "generators"),
    "numpy's generator": (without_generator("numpy"), {}, "generators"),
    "moments": (forgets("moments", forget_moments), {}, "model|optimizer"),
    "average": (forgets("average", forget_average), {}, "ema"),
    "batch-norm buffers": (
        forgets("buffers", reset_buffers),
        {"model": "cnn", "params": "{channels: [4]}"},
        "model",
    ),
    "metric sums": (forgets("sums", lambda s: s.loss_sum.zero_()), {}, "loss"),
    "best weights": (
        forgets("best", lambda s: s.best.clear()),
        {"lr": "0.5", "more": ", select_metric: val_accuracy"},  # the best epoch is the first
        "best",
    ),
    "best metric": (forgets("best", lambda s: setattr(s.progress, "best", None)), {}, "state"),
    "curve": (forgets("curve", lambda s: s.progress.history.clear()), {}, "state"),
    "early-stopping counters": (
        forgets("counters", lambda s: setattr(s.progress, "watched", None)),
        {"more": ", early_stopping: {metric: val_loss, patience: 9}"},
        "state",
    ),
    "plateau": (
        forgets("plateau", lambda s: setattr(s.progress.plateau, "best", None)),
        {"schedule": "{name: plateau, patience: 1}"},
        "state",
    ),
    "scaler": (
        forgets("scaler", lambda s: s.scaler.load_state_dict({**s.scaler.state_dict(), "scale": 8.0})),
        {"precision": "fp16"},
        "loss|model|optimizer|state",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_state_that_is_not_restored_is_named(project: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plant, settings, expected = PLANTED[name]
    given = experiment(project, **settings)
    plant(monkeypatch)
    found = verdict(given, kills=3)
    assert found.difference is not None
    assert any(word in found.difference for word in expected.split("|")), found.difference


OUTSIDE = {
    "loss": ("training.loss=tests.plugins.own:Tired", "loss"),
    "optimizer": ("optimizer.name=tests.plugins.own:Forgetful", "model|optimizer"),
    "metric": ("training.metrics=['tests.plugins.own:Leaky']", "state"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_part_of_the_user_that_keeps_state_outside_of_the_checkpoint_is_found(project: Path, name: str) -> None:
    change, expected = OUTSIDE[name]
    experiment(project)
    found = verdict(config.load([project / "experiment.yaml"], [change]), kills=3)
    assert found.difference is not None
    assert any(word in found.difference for word in expected.split("|")), found.difference


def test_parts_of_the_user_whose_state_is_saved_are_found_exact(project: Path) -> None:
    experiment(project, more=", loss: tests.plugins.own:smoothed, metrics: [auroc, 'tests.plugins.own:Streak']")
    changes = ["optimizer.name=tests.plugins.own:Heavy", "schedule.name=tests.plugins.own:noam"]
    assert verdict(config.load([project / "experiment.yaml"], changes), kills=3).difference is None


def test_a_model_with_unseeded_numbers_is_told_apart_from_lost_state(project: Path) -> None:
    found = verdict(experiment(project, model="noisy.model", params="{}"))
    assert found.difference is not None
    assert "nothing interrupted" in found.difference


def test_an_unseeded_data_set_is_found_before_any_training(project: Path) -> None:
    found = verdict(experiment(project, data="data: {name: noisy.data}\n"))
    assert found.difference is not None
    assert "preparing it twice" in found.difference


def test_the_log_of_a_training_may_contain_any_bytes(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_bytes(b"caf\xe9\nlast line\n")
    assert child.tail(tmp_path / "log.txt") == "caf\ufffd\nlast line"


def test_a_killed_proof_leaves_no_training_behind(project: Path) -> None:
    experiment(project)
    command = [sys.executable, "-m", "workflow_lib", "prove-resume", "experiment.yaml", "--set", "training.epochs=9999"]
    proof = psutil.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    try:
        until(lambda: list(project.glob("work/prove/*/straight/trace-0.jsonl")), "the training to begin")
        until(lambda: len(proof.children(recursive=True)) == 2, "the launcher and its rank alone")
        started = [(child.pid, start_s(child.pid)) for child in proof.children(recursive=True)]
    finally:
        proof.kill()
        proof.wait()
    try:
        until(lambda: not any(is_alive(*child) for child in started), "the training to end")
    finally:
        for pid, start_time in started:
            if is_alive(pid, start_time):
                os.kill(pid, signal.SIGKILL)
