"""Compare the training loop with loops written by hand or with a framework, as ratios in one process.

    python benchmarks/loop.py [--rounds 9]           `pip install -c constraints.txt '.[bench]'` adds the frameworks

Slices of one epoch of each loop alternate, and the medians of their CPU times are compared. All use one thread, AdamW
and the same model. `textbook` draws from a DataLoader; `preloaded` indexes tensors and uses the fused optimizer;
`everstep` is the trainer of the package with everything on: checks for stops, saves every 10 s, metrics. The frameworks
have a DataLoader and the fused optimizer, and neither log nor save.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workflow_lib import config, plan, plugins, tasks
from workflow_lib.checkpoint import CheckpointStore
from workflow_lib.checkpoint.saver import Saver
from workflow_lib.config.run import Model, Training
from workflow_lib.data import ModelSpec, Split
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.runtime.threads import keep_freed_memory, set_threads
from workflow_lib.store.events import EventLog
from workflow_lib.training.trainer import Trainer


@dataclass(frozen=True)
class Case:
    """A model, its data, and the number of steps in an epoch."""

    model: Model
    spec: ModelSpec
    batch: int
    steps: int

    def data(self) -> Split:
        """Return random samples: their values do not change the time."""
        samples = self.batch * self.steps
        if self.spec.task == "language":
            tokens = torch.randint(0, self.spec.outputs, (samples, self.spec.input_shape[0] + 1))
            return Split(tokens, torch.empty(samples, 0))
        return Split(torch.randn(samples, *self.spec.input_shape), torch.randint(0, self.spec.outputs, (samples,)))

    def pairs(self, data: Split) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the inputs and the targets as a hand-written loop would have them."""
        if self.spec.task == "language":
            return data.inputs[:, :-1].contiguous(), data.inputs[:, 1:].contiguous()
        return data.inputs, data.targets


CASES = {
    "mlp 784-256-10": Case(Model(name="mlp", params={"hidden": [256]}), ModelSpec((1, 28, 28), 10), 64, 100),
    "cnn 1x16x16": Case(Model(name="cnn", params={"channels": [16, 32]}), ModelSpec((1, 16, 16), 10), 64, 30),
    "transformer 2x64, 64 tokens": Case(
        Model(name="transformer", params={"layers": 2, "heads": 4, "width": 64}),
        ModelSpec((64,), 128, "language"),
        16,
        20,
    ),
}
Pairs = tuple[torch.Tensor, torch.Tensor]
Epoch = Callable[[], None]


def criterion(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1))


def build(model: Model, spec: ModelSpec) -> nn.Module:
    plugin = plugins.load("models", model.name)
    module: nn.Module = plugin.build(plugin.Params.model_validate(model.params), spec)
    return module


def textbook(model: nn.Module, data: Pairs, size: int) -> Epoch:
    batches = loader(data, size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def epoch() -> None:
        total = 0.0
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            total += loss.item()

    return epoch


def preloaded(model: nn.Module, data: Pairs, size: int) -> Epoch:
    optimizer = fused(model)

    def epoch() -> None:
        inputs, targets = data
        order = torch.randperm(len(inputs))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            optimizer.zero_grad(set_to_none=True)
            criterion(model(inputs.index_select(0, rows)), targets.index_select(0, rows)).backward()
            optimizer.step()

    return epoch


def fabric(model: nn.Module, data: Pairs, size: int) -> Epoch:
    from lightning.fabric import Fabric

    engine = Fabric(accelerator="cpu", devices=1)
    wrapped, optimizer = engine.setup(model, fused(model))
    batches = engine.setup_dataloaders(loader(data, size))

    def epoch() -> None:
        for inputs, targets in batches:
            optimizer.zero_grad()
            engine.backward(criterion(wrapped(inputs), targets))
            optimizer.step()

    return epoch


def accelerate(model: nn.Module, data: Pairs, size: int) -> Epoch:
    from accelerate import Accelerator

    engine = Accelerator(cpu=True)
    wrapped, optimizer, batches = engine.prepare(model, fused(model), loader(data, size))

    def epoch() -> None:
        for inputs, targets in batches:
            optimizer.zero_grad()
            engine.backward(criterion(wrapped(inputs), targets))
            optimizer.step()

    return epoch


def lightning(model: nn.Module, data: Pairs, size: int) -> Epoch:
    """Return a loop in a thread: Lightning's trainer owns the loop, and waits before each epoch for its turn."""
    import lightning as pl

    go, done = threading.Semaphore(0), threading.Semaphore(0)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
            inputs, targets = batch
            return criterion(self.model(inputs), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return fused(self.model)

        def on_train_epoch_start(self) -> None:
            go.acquire()

        def on_train_epoch_end(self) -> None:
            done.release()

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=-1, enable_model_summary=False, **quiet)
    threading.Thread(target=trainer.fit, args=(Module(), loader(data, size)), daemon=True).start()

    def epoch() -> None:
        go.release()
        done.acquire()

    return epoch


def loader(data: Pairs, size: int) -> torch.utils.data.DataLoader[Any]:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=size, shuffle=True)


def fused(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


Contender = Callable[[nn.Module, Pairs, int], Epoch]
# module that each framework needs, and its loop
FRAMEWORKS: dict[str, tuple[str, Contender]] = {
    "fabric": ("lightning", fabric),
    "lightning": ("lightning", lightning),
    "accelerate": ("accelerate", accelerate),
}


def everstep(case: Case, data: Split, folder: Path) -> Epoch:
    experiment = config.Experiment(
        name="bench", model=case.model, training=Training(batch_size=case.batch, epochs=1000)
    )
    run = plan.base(experiment)
    store = CheckpointStore(folder, fingerprint={}, attempt="0" * 32, may_publish=lambda: True)
    trainer = Trainer(
        run,
        spec=case.spec,
        objective=tasks.load(case.spec.task).objective(run.training, torch.device("cpu"), (), ()),
        train=data,
        validation=data,
        ranks=Ranks(),
        device=torch.device("cpu"),
        shared_state=SharedState(1),
        store=store,
        saver=Saver(store, interval_s=10.0, interval_steps=None, mtbf_s=14400.0),
        events=EventLog(folder / "events.jsonl"),
        environment={},
        metrics_file=folder / "metrics.jsonl",
    )
    trainer.enter()

    def epoch() -> None:
        cursor = trainer.state.progress.cursor
        cursor.phase, cursor.sample = "train", 0
        trainer.train_epoch()

    return epoch


def measured(case: Case, rounds: int, frameworks: Mapping[str, Contender]) -> dict[str, float]:
    """Return the median CPU seconds of an epoch of each loop; the loops alternate."""
    data = case.data()
    pairs = case.pairs(data)
    with tempfile.TemporaryDirectory() as folder:
        loops = {
            name: contender(build(case.model, case.spec), pairs, case.batch)
            for name, contender in ({"textbook": textbook, "preloaded": preloaded} | dict(frameworks)).items()
        }
        loops["everstep"] = everstep(case, data, Path(folder))
        times: dict[str, list[float]] = {name: [] for name in loops}
        for turn in range(rounds + 1):
            for name, epoch in loops.items():
                begun = time.process_time()
                epoch()
                if turn:  # the first slice warms up
                    times[name].append(time.process_time() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    set_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    present = {name: one for name, (module, one) in FRAMEWORKS.items() if importlib.util.find_spec(module)}
    columns = ("preloaded", *present, "everstep")
    print(f"load {os.getloadavg()[0]:.1f}; steps of textbook per second of CPU, then speeds relative to it")
    print(f"{'':<30}{'textbook':>10}" + "".join(f"{name:>12}" for name in columns) + f"{'of preloaded':>14}")
    for name, case in CASES.items():
        median = measured(case, rounds, present)
        ratios = "".join(f"{median['textbook'] / median[column]:>12.2f}" for column in columns)
        share = median["preloaded"] / median["everstep"]
        print(f"{name:<30}{case.steps / median['textbook']:>10,.0f}{ratios}{share:>14.3f}", flush=True)


if __name__ == "__main__":
    main()
