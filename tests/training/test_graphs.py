"""Steps as a graph have the bits of steps computed one by one; where they would not, they are computed one by one."""

from __future__ import annotations

import json
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.recorded_graph import RecordedGraph
from workflow_lib import config, plan, tasks
from workflow_lib.checkpoint import CheckpointStore
from workflow_lib.checkpoint.saver import Saver
from workflow_lib.config.compose import Source
from workflow_lib.config.yaml import Origins
from workflow_lib.data import ModelSpec, Split
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.errors import ConfigError, DivergedError
from workflow_lib.plugins import Section
from workflow_lib.store.events import EventLog
from workflow_lib.training import snapshot
from workflow_lib.training.divergence import Divergence
from workflow_lib.training.graphs import graph_for
from workflow_lib.training.step_numbers import StepNumbers
from workflow_lib.training.trainer import Trainer

CPU = torch.device("cpu")
IMAGES, TOKENS = ModelSpec((3, 8, 8), 4), ModelSpec((8,), 20, "language")
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
    "language in bf16": GPT | {"training": {"precision": "bf16"}},
    "fp16 with a scaler, groups of weights": {
        "model": {**MLP["model"], "init": {"lr_scale": {"*.bias": 0.5}}},
        "training": {"precision": "fp16", "clip_norm": 1.0},
        "schedule": {"name": "linear"},
    },
}


def trainer(folder: Path, settings: dict[str, Any], graph: RecordedGraph | None = None, **options: Any) -> Trainer:
    """Return a training of 12 steps in 3 epochs on random data."""
    spec = TOKENS if settings["model"]["name"] == "transformer" else IMAGES
    torch.manual_seed(0)
    if spec.task == "language":
        split = Split(torch.randint(0, 20, (40, 9)), torch.empty(40, 0))
    else:
        split = Split(torch.randn(40, *spec.input_shape), torch.randint(0, 4, (40,)))
    if "spoil" in options:
        options.pop("spoil")(split)
    training = {"batch_size": 10, "epochs": 3, **settings.get("training", {})}
    run = plan.base(config.Experiment.model_validate({"name": "x", **settings, "training": training}))
    store = CheckpointStore(folder / "checkpoints", fingerprint={}, attempt="0" * 32, may_publish=lambda: True)
    return Trainer(
        run,
        spec=spec,
        objective=tasks.load(spec.task).objective(run.training, CPU, (10,) * 4, ()),
        train=split,
        validation=split,
        ranks=Ranks(),
        device=CPU,
        shared_state=options.pop("shared_state", None) or SharedState(1),
        store=store,
        saver=Saver(store, interval_s=1e9, interval_steps=None, mtbf_s=1e4),
        events=EventLog(folder / "events.jsonl"),
        environment={},
        metrics_file=folder / "metrics.jsonl",
        graph=graph,
        **options,
    )


def everything(done: Trainer) -> dict[str, Any]:
    """Return all that decides how a run continues, and all that it has measured: tensors as bytes."""
    groups = {**snapshot.tensors(done.state), "log": {"rows": done.state.log}}
    named = {f"{group} {name}": value for group, tensors in groups.items() for name, value in tensors.items()}
    return {
        **{name: value.detach().reshape(-1).view(torch.uint8).tolist() for name, value in named.items()},
        "record": json.dumps(snapshot.record(done.state), sort_keys=True),
    }


def trained(folder: Path, settings: dict[str, Any], graph: RecordedGraph | None = None, **options: Any) -> Any:
    done = trainer(folder, settings, graph, **options)
    done.fit()
    return everything(done)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_graph_has_the_bits_of_steps_computed_one_by_one(tmp_path: Path, variant: str) -> None:
    graph = RecordedGraph()
    found = trained(tmp_path / "graph", VARIANTS[variant], graph)
    assert found == trained(tmp_path / "steps", VARIANTS[variant])
    assert graph.replays == 9  # of 12 steps the first 3 warm up; so no captured step waits for the device


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


class Params(Section):
    """No settings."""


class Waiting(nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = super().forward(inputs.flatten(1))
        return outputs * 2 if outputs.sum() > 1e9 else outputs


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
    def spoil(split: Split) -> None:
        split.inputs[7] = float("inf")

    said = []
    for graph in (None, RecordedGraph()):
        training = trainer(tmp_path / str(graph), MLP, graph, spoil=spoil)
        with pytest.raises(DivergedError) as error:
            training.fit()
        said.append(str(error.value).partition(" (epoch")[0].rpartition("step ")[2])
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"runtime": {"device": "cpu"}}, "runtime.device is cpu"),
        ({"runtime": {"nproc": 2}}, "the steps of 2 processes (training.parallel: ddp) wait for each other"),
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


def test_without_a_gpu_steps_are_computed_one_by_one() -> None:
    run = plan.base(config.Experiment.model_validate({"name": "x"}))
    assert graph_for("auto", run, CPU, 1, is_main=True) is None
    with pytest.raises(ConfigError, match="on is impossible: a GPU is needed, and the device is cpu"):
        graph_for("on", run, CPU, 1, is_main=True)
