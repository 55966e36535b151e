"""Measure a save: the time that it blocks the training, compared with a plain copy, and the steps meanwhile.

    python benchmarks/save.py [--millions 100] [--rounds 5] [--folder DIR]

The state is that of AdamW: weights and two moments in float32, 12 bytes per parameter. `memcpy` copies it into existing
memory, the least that a save can block; `save` is that of the package, in the background. Both alternate. Then steps of
a small model are timed without and with a save that is being written.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch import nn

from workflow_lib.checkpoint import CheckpointStore, Snapshot
from workflow_lib.checkpoint.saver import Saver
from workflow_lib.runtime.threads import keep_freed_memory, set_threads

LAYERS = 12


def state_of(parameters: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return weights and moments in tensors of equal size."""
    each = parameters // LAYERS
    return {
        "model": {f"layer{number}": torch.randn(each) for number in range(LAYERS)},
        "optimizer": {f"{number}.{name}": torch.randn(each) for number in range(LAYERS) for name in ("m", "v")},
    }


def step_times(seconds: float, until: threading.Thread | None = None) -> list[float]:
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer, inputs = torch.optim.AdamW(model.parameters(), fused=True), torch.randn(64, 784)
    targets, times = torch.randint(0, 10, (64,)), []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and (until is None or until.is_alive()):
        begun = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        times.append(time.perf_counter() - begun)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, nargs="+", default=[0.2, 100.0], help="parameters")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to save (default: a temporary folder)")
    arguments = parser.parse_args()
    set_threads(1)
    keep_freed_memory()
    print(f"{'parameters':>12}{'memcpy s':>12}{'blocked s':>12}{'ratio':>8}{'written s':>12}{'step while writing':>20}")
    for millions in arguments.millions:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            measure(millions, arguments.rounds, Path(folder))


def measure(millions: float, rounds: int, folder: Path) -> None:
    """Return a line of the table."""
    state = state_of(int(millions * 1e6))
    copies = {group: {name: one.clone() for name, one in named.items()} for group, named in state.items()}
    store = CheckpointStore(folder, fingerprint={}, attempt="0" * 32, may_publish=lambda: True)
    saver = Saver(store, interval_s="auto", interval_steps=None, mtbf_s=14400.0)
    copied, blocked, written, quiet, busy = [], [], [], [], []
    for turn in range(rounds + 1):
        begun = time.perf_counter()
        for group, named in state.items():
            for name, one in named.items():
                copies[group][name].copy_(one)
        after_copy = time.perf_counter()
        saver.start(Snapshot(turn, state, {}))
        after_start = time.perf_counter()
        during = step_times(60.0, until=saver.thread)
        saver.wait()
        after_write = time.perf_counter()
        alone = step_times(1.0)
        if turn:  # the first save allocates the buffers
            copied.append(after_copy - begun)
            blocked.append(after_start - after_copy)
            written.append(after_write - after_start)
            busy += during
            quiet += alone
    ratio = statistics.median(blocked) / statistics.median(copied)
    slower = statistics.median(busy) / statistics.median(quiet) if busy else float("nan")
    print(
        f"{millions:>10.1f} M{statistics.median(copied):>12.4f}{statistics.median(blocked):>12.4f}{ratio:>8.2f}"
        f"{statistics.median(written):>12.2f}{slower:>18.2f} x"
    )


if __name__ == "__main__":
    main()
