"""A model on random data on the device: the trainer of the package, and the same steps in a plain loop."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
ROUNDS = 5
SHARES = (1, 4, 16)  # of the batch are tried in turn, until one fits into the memory


@dataclass(frozen=True)
class Case:
    """A model, the shape of its data, and how many steps are timed at once."""

    model: str
    params: dict[str, Any]
    shape: tuple[int, ...]
    outputs: int
    batch: int
    steps: int
    precision: str = "fp32"
    task: str = "classification"
    is_compiled: bool = False
    memory_format: str = "contiguous"
    aim: float | None = None  # speed, as a multiple of the plain loop
    aim_of_rate: float | None = None  # part of the card's measured bf16 rate


class Bench:
    """The trainer of the package on random data on the device, and the same steps without it."""

    def __init__(
        self, case: Case, device: torch.device, determinism: str, folder: Path, graphs: Literal["auto", "off"] = "off"
    ) -> None:
        import torch

        from workflow_lib import config, plan, plugins, tasks
        from workflow_lib.checkpoint import CheckpointStore
        from workflow_lib.checkpoint.saver import Saver
        from workflow_lib.config.run import Model, Training
        from workflow_lib.data import ModelSpec, Split
        from workflow_lib.distributed.ranks import Ranks
        from workflow_lib.distributed.shared_state import SharedState
        from workflow_lib.store.events import EventLog
        from workflow_lib.training.graphs import graph_for
        from workflow_lib.training.trainer import Trainer

        self.case, self.device = case, device
        spec: Any = ModelSpec(case.shape, case.outputs, case.task)
        samples = case.batch * case.steps
        if case.task == "language":
            inputs = torch.randint(0, case.outputs, (samples, case.shape[0] + 1), device=device)
            targets = torch.empty(samples, 0, device=device)
            self.pairs = inputs[:, :-1].contiguous(), inputs[:, 1:].contiguous()
        else:
            inputs = torch.randn(samples, *case.shape, device=device)
            targets = torch.randint(0, case.outputs, (samples,), device=device)
            self.pairs = inputs, targets
        model = Model(name=case.model, params=case.params)
        training: Any = {"batch_size": case.batch, "precision": case.precision, "determinism": determinism}
        training |= {"compile": case.is_compiled, "memory_format": case.memory_format}
        run = plan.base(config.Experiment(name="bench", model=model, training=Training(**training)))
        store = CheckpointStore(folder, fingerprint={}, attempt="0" * 32, may_publish=lambda: True)
        self.saver = Saver(store, interval_s=1e9, interval_steps=None, mtbf_s=14400.0, device=device)
        split = Split(inputs, targets)
        self.trainer = Trainer(
            run,
            spec=spec,
            objective=tasks.load(case.task).objective(run.training, device, (), ()),
            train=split,
            validation=split,
            ranks=Ranks(),
            device=device,
            shared_state=SharedState(1),
            store=store,
            saver=self.saver,
            events=EventLog(folder / "events.jsonl"),
            environment={},
            metrics_file=folder / "metrics.jsonl",
            graph=graph_for(graphs, run, device, 1, is_main=True),
        )
        self.events = folder / "events.jsonl"
        begun = time.perf_counter()
        self.trainer.enter()
        self.wait()
        self.entered_s = time.perf_counter() - begun
        plugin = plugins.load("models", case.model)
        self.bare_model = plugin.build(plugin.Params.model_validate(case.params), spec).to(device)
        self.bare_optimizer = torch.optim.AdamW(self.bare_model.parameters(), lr=1e-4, fused=True)
        self.bare_forward = torch.compile(self.bare_model, dynamic=False) if case.is_compiled else self.bare_model

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        synchronize(self.device)

    def epoch(self) -> None:
        """Run the steps with the trainer of the package."""
        cursor = self.trainer.state.progress.cursor
        cursor.phase, cursor.sample = "train", 0
        self.trainer.train_epoch()

    def bare(self) -> None:
        """Run the steps with a plain loop over tensors on the device."""
        import torch

        inputs, targets = self.pairs
        size, is_bf16 = self.case.batch, self.case.precision == "bf16"
        order = torch.randperm(len(inputs), device=self.device)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            self.bare_optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16) if is_bf16 else contextlib.nullcontext():
                outputs = self.bare_forward(inputs.index_select(0, rows))
                wanted = targets.index_select(0, rows)
                loss = torch.nn.functional.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), wanted.reshape(-1))
            loss.backward()
            self.bare_optimizer.step()

    def seconds(self, act: Callable[[], None]) -> float:
        """Return the seconds of the call, including the work of the device."""
        self.wait()
        begun = time.perf_counter()
        act()
        self.wait()
        return time.perf_counter() - begun


def quiet() -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def fitting(case: Case, device: torch.device, measure: Callable[[Case], T]) -> tuple[Case, T] | None:
    """Return the case with the largest batch that fits into memory, and its measurement; None if no batch fits."""
    import torch

    for share in SHARES:
        smaller = replace(case, batch=max(1, case.batch // share))
        with contextlib.suppress(torch.OutOfMemoryError):
            return smaller, measure(smaller)
        free(device)
    return None


def free(device: torch.device) -> None:
    """Free unused memory of the device. A trainer is part of reference cycles, so it needs a garbage collection."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def time_steps(
    case: Case, device: torch.device, determinism: str, folder: Path, graphs: Literal["auto", "off"] = "off"
) -> tuple[float, float, list[dict[str, Any]]]:
    """Return the seconds of the plain loop's steps and of the package's, and its events about graphs."""
    name = f"{case.model}-{case.batch}-{graphs}-{case.memory_format}" + ("-compiled" if case.is_compiled else "")
    bench = Bench(case, device, determinism, folder / name, graphs)
    bare, ours = [], []
    for turn in range(ROUNDS + 1):
        seconds = bench.seconds(bench.bare), bench.seconds(bench.epoch)
        if turn:  # the first round warms up
            bare.append(seconds[0])
            ours.append(seconds[1])
    told = map(json.loads, bench.events.read_text().splitlines() if bench.events.exists() else [])
    return statistics.median(bare), statistics.median(ours), [event for event in told if event["kind"] == "graph"]


def synchronize(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
