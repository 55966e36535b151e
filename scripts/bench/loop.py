"""Steps of the training loop against loops that people write by hand, as ratios in one process.

    python scripts/bench/loop.py [--rounds 9]

Slices of one epoch of each loop take turns, and the median of each is compared. All use one thread, AdamW, batches of
64 and the same model. `textbook` draws from a DataLoader; `preloaded` indexes tensors and uses the fused optimizer;
`everstep` is the trainer of the package with everything on: looking for stops, saves every 10 s, metrics.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from workflow_lib import config, plan, plugins, tasks
from workflow_lib.checkpoint import CheckpointStore
from workflow_lib.config.sections import Model
from workflow_lib.runtime.control import Control
from workflow_lib.runtime.log import EventLog
from workflow_lib.runtime.ranks import Ranks
from workflow_lib.runtime.threads import keep_freed_memory, set_threads
from workflow_lib.saver import Saver
from workflow_lib.shards import ModelSpec, Split
from workflow_lib.training import Trainer

BATCH = 64
CASES = {
    "mlp 784-256-10": (Model(name="mlp", params={"hidden": [256]}), (1, 28, 28), 100 * BATCH),
    "cnn 1x16x16": (Model(name="cnn", params={"channels": [16, 32]}), (1, 16, 16), 30 * BATCH),
}


def build(model: Model, spec: ModelSpec) -> nn.Module:
    plugin = plugins.load("models", model.name)
    module: nn.Module = plugin.build(plugin.Params.model_validate(model.params), spec)
    return module


def textbook(model: nn.Module, data: Split) -> Callable[[], None]:
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(data.inputs, data.targets), batch_size=BATCH, shuffle=True
    )
    optimizer, criterion = torch.optim.AdamW(model.parameters(), lr=1e-3), nn.CrossEntropyLoss()

    def epoch() -> None:
        total = 0.0
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            total += loss.item()

    return epoch


def preloaded(model: nn.Module, data: Split) -> Callable[[], None]:
    optimizer, criterion = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True), nn.CrossEntropyLoss()

    def epoch() -> None:
        order = torch.randperm(len(data.targets))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            optimizer.zero_grad(set_to_none=True)
            criterion(model(data.inputs.index_select(0, rows)), data.targets.index_select(0, rows)).backward()
            optimizer.step()

    return epoch


def everstep(model: Model, spec: ModelSpec, data: Split, folder: Path) -> Callable[[], None]:
    run = plan.base(config.Experiment(name="bench", model=model))
    store = CheckpointStore(folder, fingerprint={}, attempt="0" * 32, may_publish=lambda: True)
    trainer = Trainer(
        run,
        spec=spec,
        task=tasks.build(run.training, spec, torch.device("cpu"), counts=()),
        train=data,
        validation=data,
        ranks=Ranks(),
        device=torch.device("cpu"),
        control=Control(1),
        store=store,
        saver=Saver(store, interval_s=10.0, interval_steps=None, mtbf_s=14400.0),
        events=EventLog(folder / "events.jsonl"),
        environment={},
        metrics_file=folder / "metrics.jsonl",
    )
    trainer.enter()

    def epoch() -> None:
        cursor = trainer.state.cursor
        cursor.phase, cursor.sample = "train", 0
        trainer.train_epoch()

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    set_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    print(f"{'case':<18}{'textbook':>14}{'preloaded':>12}{'everstep':>12}   steps/s of textbook; ratios to it")
    for name, (model, shape, samples) in CASES.items():
        spec = ModelSpec(shape, 10)
        data = Split(torch.randn(samples, *shape), torch.randint(0, 10, (samples,)))
        with tempfile.TemporaryDirectory() as folder:
            loops = {
                "textbook": textbook(build(model, spec), data),
                "preloaded": preloaded(build(model, spec), data),
                "everstep": everstep(model, spec, data, Path(folder)),
            }
            times: dict[str, list[float]] = {loop: [] for loop in loops}
            for turn in range(rounds + 1):
                for loop, epoch in loops.items():
                    begun = time.perf_counter()
                    epoch()
                    if turn:  # the first slice warms up
                        times[loop].append(time.perf_counter() - begun)
        median = {loop: statistics.median(values) for loop, values in times.items()}
        base = median["textbook"]
        ratios = f"{base / median['preloaded']:>12.2f}{base / median['everstep']:>12.2f}"
        print(f"{name:<18}{samples / BATCH / base:>14,.0f}{ratios}")


if __name__ == "__main__":
    main()
