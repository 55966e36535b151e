"""Steps as a graph have the bits of steps computed one by one; where they would not, they are computed one by one."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.prepared import given, preparing
from tests.support.recorded_graph import RecordedGraph, Recording
from tests.support.small_training import CPU, IMAGES, everything, trained, trainer
from workflow_lib import config, plan
from workflow_lib.config.compose import Source
from workflow_lib.config.yaml import Origins
from workflow_lib.data import Split, load_split
from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.errors import ConfigError, DivergedError
from workflow_lib.plugins import Section
from workflow_lib.training.divergence import Divergence
from workflow_lib.training.graphs import graph_for
from workflow_lib.training.step_numbers import StepNumbers

MLP = {"model": {"name": "mlp", "params": {"hidden": [8], "dropout": 0.2}}}
CNN = {"model": {"name": "cnn", "params": {"channels": [4]}}}
GPT = {"model": {"name": "transformer", "params": {"layers": 1, "heads": 2, "width": 8, "dropout": 0.1}}}
MIXED = {"flip_horizontal": 0.5, "rotation": 10, "noise": 0.1, "mixup": 0.3, "cutmix": 0.3}
VARIANTS: dict[str, dict[str, Any]] = {
    "dropout, schedule, micro-batches, averages, clipping, log": MLP
    | {"schedule": {"name": "cosine", "warmup_epochs": 1}}
    | {"training": {"accumulation_steps": 3, "ema_decay": 0.9, "clip_norm": 1.0, "log_every_steps": 2}},
    "batch norm, augmentation, mixing, balanced sampling, sgd": CNN
    | {"augment": MIXED, "optimizer": {"name": "sgd", "lr": 0.01}, "training": {"sampling": "balanced"}},
    "channels_last, averages": CNN | {"training": {"memory_format": "channels_last", "ema_decay": 0.9}},
    "language in bf16": GPT | {"training": {"precision": "bf16"}},
    "fp16 with a scaler, groups of weights": {
        "model": {**MLP["model"], "init": {"lr_scale": {"*.bias": 0.5}}},
        "training": {"precision": "fp16", "clip_norm": 1.0},
        "schedule": {"name": "linear"},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_graph_has_the_bits_of_steps_computed_one_by_one(tmp_path: Path, variant: str) -> None:
    graph = RecordedGraph()
    found = trained(tmp_path / "graph", VARIANTS[variant], graph)
    assert found == trained(tmp_path / "steps", VARIANTS[variant])
    assert graph.replays == 9  # of 12 steps the first 3 warm up; so no captured step waits for the device


def test_a_graph_takes_its_samples_itself_from_data_in_memory(tmp_path: Path) -> None:
    """Besides the replay, the host gives it the place of the step, and the learning rate if that changes."""

    class Counting(RecordedGraph):
        outside: list[str] | None = None

        def replay(self) -> None:
            if self.replays == 5:
                assert self.seen is not None
                self.outside = [operation[0].overloadpacket.__name__ for operation in self.seen.operations]
            super().replay()

    graph = Counting()
    training = trainer(tmp_path, CNN | {"augment": MIXED}, graph)
    step = training._passes.step

    def watched(*given: Any) -> Any:
        with Recording() as graph.seen:  # type: ignore[attr-defined]
            return step(*given)

    training._passes.step = watched  # type: ignore[method-assign]
    training.fit()
    assert graph.replays == 9
    assert graph.outside == ["fill_"]


def test_data_that_is_read_from_files_is_copied_to_where_a_graph_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = np.random.default_rng(0)
    images = numbers.normal(size=(80, *IMAGES.input_shape)).astype(np.float32)
    manifest = preparing(tmp_path, monkeypatch)(given(images, np.arange(80) % 4, classes=tuple("abcd")))
    settings, graph = CNN | {"augment": MIXED}, RecordedGraph()
    done = []
    for name, chosen, in_memory in (("graph", graph, False), ("steps", None, False), ("memory", RecordedGraph(), True)):
        split = load_split(manifest, "train", tmp_path / "work", in_memory=in_memory)
        training = trainer(tmp_path / name, settings, chosen, spec=manifest.spec, split=split)
        training.fit()
        done.append(everything(training))
    assert graph.replays == training.state.progress.cursor.step - 3
    assert done[0] == done[1] == done[2]


@pytest.mark.parametrize(
    ("number", "variant"),
    [("set_learning_rate", 0), ("set_average_weight", 0), ("set_key", 1)],
)
def test_a_number_that_a_graph_would_freeze_changes_the_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str, variant: int
) -> None:
    settings, right = list(VARIANTS.values())[variant], getattr(StepNumbers, number)
    expected = trained(tmp_path / "steps", settings)

    class Frozen(RecordedGraph):
        def capture(self, function: Callable[[], Any]) -> Any:
            monkeypatch.setattr(StepNumbers, number, lambda *given: None)
            return super().capture(function)

    graph = Frozen()
    found = trained(tmp_path / "graph", settings, graph)
    assert graph.replays == 9
    assert getattr(StepNumbers, number) is not right
    assert found != expected


def test_a_stopped_training_resumes_with_the_same_bits(tmp_path: Path) -> None:
    settings = VARIANTS["dropout, schedule, micro-batches, averages, clipping, log"]
    shared_state = SharedState(1)

    class Stopping(RecordedGraph):
        def replay(self) -> None:
            super().replay()
            if self.replays == 3:
                shared_state._handle(signal.SIGTERM, None)

    first = trainer(tmp_path / "graph", settings, Stopping(), shared_state=shared_state)
    assert first.fit().ended == "stopped"
    assert first.state.progress.cursor.step == 6
    resumed = trained(tmp_path / "graph", settings, RecordedGraph())
    assert resumed == trained(tmp_path / "steps", settings)


def test_a_validation_measures_every_sample_and_a_step_only_whole_batches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    split = Split(torch.randn(43, *IMAGES.input_shape), torch.randint(0, 4, (43,)))
    done = [trainer(tmp_path / str(graph), MLP, graph, split=split) for graph in (None, RecordedGraph())]
    for training in done:
        training.fit()
        progress = training.state.progress
        assert (progress.cursor.step, progress.validation["samples"]) == (12, 43)
    assert everything(done[0]) == everything(done[1])


class Params(Section):
    """No settings."""


class Waiting(nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = super().forward(inputs.flatten(1))
        return outputs * 2 if outputs.sum() > 1e9 else outputs


class Copying(nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs.flatten(1)) * torch.tensor([1.0, 2.0, 3.0, 4.0])


class Drawing(nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs.flatten(1)) * (random.random() if self.training else 1.0)


class Counting(nn.Linear):
    calls = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(inputs.flatten(1))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Waiting, r"the step waits for the GPU at .*test_graphs.py, line \d+"),
        (Copying, r"the step waits for the GPU at .*test_graphs.py, line \d+"),
        (Drawing, r"the step draws random numbers on the CPU \(python\)"),
        (Counting, r"the step changes an attribute of the model \(`calls`\)"),
    ],
)
def test_a_model_that_a_graph_would_not_repeat_is_trained_step_by_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[nn.Linear],
    said: str,
) -> None:
    module = ModuleType("given.graph_model")
    module.__dict__.update(__file__=__file__, Params=Params, build=lambda params, spec: kind(192, 4))
    monkeypatch.setitem(sys.modules, "given.graph_model", module)
    settings, graph = {"model": {"name": "given.graph_model"}}, RecordedGraph()
    steps = trained(tmp_path / "steps", settings)
    assert trained(tmp_path / "graph", settings, graph) == steps
    assert graph.replays == 0
    (line,) = [record.message for record in caplog.records if "CUDA graph" in record.message]
    assert line.startswith("steps are not computed by a CUDA graph: ")
    with pytest.raises(ConfigError, match=f"runtime.cuda_graphs: on is impossible: {said}; allowed: auto, off"):
        trained(tmp_path / "required", settings, RecordedGraph(), is_graph_required=True)


class Wrong(RecordedGraph):
    """A graph whose replays compute a little more."""

    def replay(self) -> None:
        super().replay()
        self.weight.data.view(-1)[0] += 1e-6


class Failing(RecordedGraph):
    """A graph that cannot be recorded: in the middle of the update, as torch reports it."""

    def capture(self, function: Callable[[], Any]) -> Any:
        def fail(*given: Any, **named: Any) -> None:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        right, Divergence.watch = Divergence.watch, fail  # type: ignore[method-assign]
        try:
            return function()
        finally:
            Divergence.watch = right  # type: ignore[method-assign]
            raise RuntimeError("operation failed due to a previous error during capture")


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Wrong, "it gives other bits ("), (Failing, "it cannot be captured: operation not permitted when stream is")],
)
def test_a_graph_that_fails_or_computes_something_else_leaves_no_trace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: type[RecordedGraph], said: str
) -> None:
    settings = VARIANTS["fp16 with a scaler, groups of weights"]
    graph = kind()
    training = trainer(tmp_path / "graph", settings, graph)
    graph.weight = next(training.state.model.parameters())  # type: ignore[attr-defined]
    training.fit()
    assert everything(training) == trained(tmp_path / "steps", settings)
    assert graph.replays == (kind is Wrong)
    assert f"steps are not computed by a CUDA graph: {said}" in caplog.text


def test_a_loss_that_is_not_finite_is_found_later_and_its_step_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    split = Split(torch.randn(40, *IMAGES.input_shape), torch.randint(0, 4, (40,)))
    split.inputs[7] = float("inf")
    said = []
    for graph in (None, RecordedGraph()):
        training = trainer(tmp_path / str(graph), MLP, graph, split=split)
        with pytest.raises(DivergedError) as error:
            training.fit()
        said.append(str(error.value).partition(" (epoch")[0].rpartition("step ")[2])
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"runtime": {"device": "cpu"}}, "runtime.device is cpu"),
        ({"runtime": {"nproc": 2}}, "the steps of 2 processes (training.parallel: ddp) wait for each other"),
        ({"training": {"parallel": "fsdp"}}, "training.parallel: fsdp gathers the weights anew in each step"),
        ({"optimizer": {"name": "lion"}}, "optimizer.name: lion waits for its learning rate; possible: adamw, sgd"),
        ({"training": {"activation_checkpointing": True}}, "training.activation_checkpointing restores random"),
    ],
)
def test_graphs_that_are_known_to_be_impossible_are_rejected_by_the_settings(
    settings: dict[str, Any], said: str
) -> None:
    runtime = {**settings.get("runtime", {}), "cuda_graphs": "on"}
    with pytest.raises(ConfigError) as error:
        config.validate(Source({"name": "x", **settings, "runtime": runtime}, Origins()), None)
    assert f"runtime.cuda_graphs: on is impossible: {said}" in str(error.value)
    config.validate(Source({"name": "x", **settings, "runtime": {**runtime, "cuda_graphs": "auto"}}, Origins()), None)


@pytest.mark.parametrize(
    ("parallel", "processes", "reason"),
    [
        ("ddp", 2, "the steps of 2 processes (training.parallel: ddp) wait"),
        ("fsdp", 1, "training.parallel: fsdp gathers"),
    ],
)
def test_auto_says_once_why_steps_are_not_captured(
    caplog: pytest.LogCaptureFixture, parallel: str, processes: int, reason: str
) -> None:
    run = plan.base(config.Experiment.model_validate({"name": "x", "training": {"parallel": parallel}}))
    with caplog.at_level("INFO"):
        for rank in range(processes):
            assert graph_for("auto", run, torch.device("cuda"), processes, is_main=rank == 0) is None
    (said,) = caplog.messages
    assert said.startswith(f"steps are not captured as a CUDA graph: {reason}")


def test_without_a_gpu_steps_are_computed_one_by_one() -> None:
    run = plan.base(config.Experiment.model_validate({"name": "x"}))
    assert graph_for("auto", run, CPU, 1, is_main=True) is None
    with pytest.raises(ConfigError, match="on is impossible: a GPU is needed, and the device is cpu"):
        graph_for("on", run, CPU, 1, is_main=True)
