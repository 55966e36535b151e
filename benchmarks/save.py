"""Measure a save: the time that it blocks the training, the steps meanwhile, and the speed of writing and verifying.

    python benchmarks/save.py [--millions 100] [--rounds 5] [--folder DIR] [--only blocked | write]

The state is that of AdamW: weights and two moments in float32, 12 bytes per parameter. `memcpy` copies it into existing
memory, the least that a save can block; `save` is that of the package, in the background. Both alternate. Then steps of
a small model are timed without and with a save that is being written.

The second table is of the largest state in one file, in the folder and in memory (/dev/shm): the format of version 0.2
(BLAKE2b, pieces of 8 MiB, the disk begins at the sync) beside the present one, each written durably, hashed only and
verified, and the present one written without a digest. All alternate; the figures are medians, in seconds of the CPU
and GB/s of elapsed time. CPU seconds depend less on the load of the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from workflow_lib.checkpoint import CheckpointStore, Snapshot, safetensors
from workflow_lib.checkpoint import snapshot as snapshots
from workflow_lib.checkpoint.manifest import CHUNK, check_file, new_hasher
from workflow_lib.checkpoint.saver import Saver
from workflow_lib.runtime.threads import keep_freed_memory, set_threads

LAYERS = 12
OLD_CHUNK = 8 << 20
MEMORY = Path("/dev/shm")


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
    parser.add_argument("--only", choices=["blocked", "write"], help="one of the two tables")
    arguments = parser.parse_args()
    set_threads(1)
    keep_freed_memory()
    if arguments.only != "write":
        print_blocked(arguments)
    if arguments.only != "blocked":
        for place in (arguments.folder, *([MEMORY] if MEMORY.is_dir() else [])):
            with tempfile.TemporaryDirectory(dir=place) as folder:
                measure_writes(max(arguments.millions), arguments.rounds, Path(folder))


def print_blocked(arguments: argparse.Namespace) -> None:
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


def write_format_1(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a file as version 0.2 did."""
    hasher = hashlib.blake2b(digest_size=32)
    with path.open("xb", buffering=0) as file:
        for piece in pieces(chunks, OLD_CHUNK):
            hasher.update(piece)
            file.write(piece)
        os.fsync(file.fileno())


def write_without_digest(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    with path.open("xb", buffering=0) as file:
        for piece in pieces(chunks, CHUNK):
            file.write(piece)
        os.fsync(file.fileno())


def pieces(chunks: Iterable[bytes | memoryview], size: int) -> Iterable[bytes | memoryview]:
    for chunk in chunks:
        for start in range(0, len(chunk), size):
            yield chunk[start : start + size]


def hash_all(algorithm: str, chunks: Iterable[bytes | memoryview], size: int) -> None:
    hasher = new_hasher(algorithm)
    for piece in pieces(chunks, size):
        hasher.update(piece)


def read_format_1(path: Path, digest: str) -> None:
    """Verify a file as version 0.2 did."""
    hasher = hashlib.blake2b(digest_size=32)
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(OLD_CHUNK):
            hasher.update(chunk)
    if hasher.hexdigest() != digest:
        raise ValueError("the file was damaged between two reads")


def measure_writes(millions: float, rounds: int, folder: Path) -> None:
    """Print the table of one folder."""
    groups = state_of(int(millions * 1e6)).items()
    tensors = {f"{group}.{name}": tensor for group, named in groups for name, tensor in named.items()}
    content = list(safetensors.encode("state", tensors))
    kept = folder / "kept"
    entry = snapshots.write_synced(kept, content)
    old = hashlib.blake2b(kept.read_bytes(), digest_size=32).hexdigest()
    target = folder / "written"
    cases: dict[str, tuple[Callable[[], object], ...]] = {
        "written durably": (
            lambda: write_format_1(target, content),
            lambda: snapshots.write_synced(target, content),
        ),
        "only hashed": (
            lambda: hash_all("blake2b", content, OLD_CHUNK),
            lambda: hash_all("blake3", content, CHUNK),
        ),
        "only written": (lambda: write_without_digest(target, content),),
        "verified": (lambda: read_format_1(kept, old), lambda: check_file(kept, entry)),
    }
    seconds: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for name, works in cases.items():
            for number, work in enumerate(works):
                seconds.setdefault((name, number), []).append(timed(work))
                target.unlink(missing_ok=True)
    size = entry["bytes"] / 1e9
    print(f"\n{size:.2f} GB in {folder}")
    print(f"{'':>18}{'format 1: CPU s':>18}{'GB/s':>8}{'format 2: CPU s':>18}{'GB/s':>8}{'CPU, ratio':>12}")
    for name, works in cases.items():
        both = [
            [statistics.median(times) for times in zip(*seconds[name, number], strict=True)]
            for number in range(len(works))
        ]
        columns = "".join(f"{cpu:>18.2f}{size / elapsed:>8.2f}" for cpu, elapsed in both)
        ratio = f"{both[1][0] / both[0][0]:>12.2f}" if len(both) > 1 else ""
        print(f"{name:>18}{columns if ratio else ' ' * 26 + columns}{ratio}")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the CPU seconds of this process and the elapsed seconds."""
    os.sync()  # so that the disk has nothing else to write
    cpu, begun = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - begun


if __name__ == "__main__":
    main()
