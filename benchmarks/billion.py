"""Start a training on a billion samples at the first sample, and resume it near the last: time and memory.

    python benchmarks/billion.py [--samples 1000000000]

The samples are made up from their numbers (`tests/plugins/billion.py`), so that neither a disk nor a decoder hides the
cost of the order. Each start is a process of its own; its time ends with the first step.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from workflow_lib import config, data, plan, tasks
from workflow_lib.checkpoint import CheckpointStore
from workflow_lib.checkpoint.saver import Saver
from workflow_lib.data import Manifest
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.store.events import EventLog
from workflow_lib.training.trainer import Trainer

BATCH, STEPS = 64, 3  # steps of each start
HELD_OUT = 100  # samples of validation, and of test
TINY = {"name": "transformer", "params": {"width": 16, "layers": 1, "heads": 2}}


class Stops(SharedState):
    """Stops the training after STEPS steps, and keeps the time at which the first of them ended."""

    first: float | None = None
    steps = 0

    def __init__(self) -> None:
        super().__init__(1)
        self._begun_at = 0

    def start_at(self, step: int) -> None:
        super().start_at(step)
        self._begun_at = step

    def tick(self, local_rank: int, step: int) -> None:
        super().tick(local_rank, step)
        if step > self._begun_at:
            self.first = self.first or time.perf_counter()
        if step == self._begun_at + STEPS:
            self._handle(15, None)


def train(folder: Path) -> dict[str, Any]:
    """Start or resume the training for STEPS steps; return its time, memory and samples."""
    manifest = Manifest.load(folder / "manifest.json")
    settings = {"name": "one", "training": {"epochs": 2, "batch_size": BATCH}, "model": TINY}
    run = plan.base(config.Experiment.model_validate(settings))
    seen: list[list[int]] = []

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "everstep" and given[0] == "fetch":
            seen.append(given[1].tolist())

    sys.addaudithook(hook)
    before, begun, cpu = peak_memory(), time.perf_counter(), torch.device("cpu")
    store = CheckpointStore(folder / "checkpoints", fingerprint={}, attempt="0" * 32, may_publish=lambda: True)
    shared_state = Stops()
    trainer = Trainer(
        run,
        spec=manifest.spec,
        objective=tasks.load(manifest.task).objective(run.training, cpu, (), ()),
        train=data.load_split(manifest, "train", folder / "work"),
        validation=data.load_split(manifest, "val", folder / "work"),
        ranks=Ranks(),
        device=cpu,
        shared_state=shared_state,
        store=store,
        saver=Saver(store, interval_s="auto", interval_steps=10**12, mtbf_s=14400.0),
        events=EventLog(folder / "events.jsonl"),
        environment={},
        metrics_file=folder / "metrics.jsonl",
    )
    trainer.fit()
    seconds = (shared_state.first or time.perf_counter()) - begun
    found = {"seconds": seconds, "memory": peak_memory() - before, "samples": seen, "sample": cursor_of(trainer).sample}
    leap_near_the_end(trainer, manifest.splits["train"].samples)
    return found


def cursor_of(trainer: Trainer) -> Any:
    return trainer.state.progress.cursor


def leap_near_the_end(trainer: Trainer, samples: int) -> None:
    """Save a state that is STEPS + 1 steps from the end of the epoch, as a training of weeks would have."""
    cursor = cursor_of(trainer)
    cursor.sample = (samples // BATCH - STEPS - 1) * BATCH
    cursor.step = cursor.sample // BATCH
    trainer._checkpoints.save_last()


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes; getrusage would count its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def starts(folder: Path, samples: int) -> list[dict[str, Any]]:
    """Return the measurements of a first start, and of a resume near the end of the epoch."""
    splits = {"validation_fraction": HELD_OUT / samples, "test_fraction": HELD_OUT / samples}
    given = {"name": "tests.plugins.billion", "params": {"samples": samples}, **splits}
    data.prepare(given, folder, folder / "work", output=folder / "manifest.json")
    command = [sys.executable, __file__, "--folder", str(folder)]
    return [json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout) for _ in range(2)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.samples < 10 * HELD_OUT:
        parser.error(f"--samples {arguments.samples}: at least {10 * HELD_OUT}")
    logging.disable(logging.WARNING)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    if arguments.folder:
        print(json.dumps(train(arguments.folder)))
    else:
        with tempfile.TemporaryDirectory() as place:
            for name, start in zip(
                ("first start", "resume near the end"), starts(Path(place), arguments.samples), strict=True
            ):
                at, memory = start["sample"] - STEPS * BATCH, start["memory"] / 2**20
                print(f"{name}: at sample {at:,}, {start['seconds']:.2f} s to the first step, {memory:.0f} MiB")
