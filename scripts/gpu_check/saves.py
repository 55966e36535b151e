"""A save of a GPT: pinned memory, time that saves block, a plain copy for comparison, write speed."""

from __future__ import annotations

import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .bench import Bench, Case, fitting, quiet
from .measuring import aimed, measured, tell
from .project import Check, Failed, Machine, Skipped, need_bf16
from .speed import CASES, SMALL

if TYPE_CHECKING:
    import torch

BLOCKED_AIM_S, DURABLE_AIM_S = 0.020, 1.5  # of a save of 1.5 GB


def measure_save(device_name: str, folder: str) -> None:
    """Tell the figures of a save."""
    import torch

    from workflow_lib.runtime.determinism import set_determinism, set_precision

    quiet()
    set_determinism("strict")
    set_precision("fp32")
    device = torch.device(device_name)
    case = SMALL["GPT bf16"] if device.type == "cpu" else CASES["GPT 124M bf16"]
    found = fitting(case, device, partial(_time_save, device=device, folder=Path(folder)))
    if found is None:
        raise Skipped("the GPT does not fit into the memory")
    fitted, lines = found
    for line in lines if fitted == case else [*lines, f"batch {fitted.batch}, as fits into the memory"]:
        tell(Path(folder), line)


def _time_save(case: Case, device: torch.device, folder: Path) -> list[str]:
    import torch

    from workflow_lib.training import snapshot

    bench = Bench(case, device, "strict", folder / str(case.batch))
    saver, state = bench.saver, bench.trainer.state
    bench.epoch()
    quiet_s = statistics.median(bench.seconds(bench.epoch) for _ in range(3))
    tensors = [tensor for named in snapshot.mutable_tensors(state).values() for tensor in named.values()]
    size = sum(tensor.nbytes for tensor in tensors)
    host = [torch.empty_like(tensor, device="cpu", pin_memory=device.type == "cuda") for tensor in tensors]

    def copy() -> None:
        for target, source in zip(host, tensors, strict=True):
            target.copy_(source, non_blocking=True)

    copy_s = statistics.median([bench.seconds(copy) for _ in range(4)][1:])
    host.clear()
    blocked, written, busy = [], [], []
    for _ in range(3):
        before = saver.blocked_s
        bench.wait()
        bench.trainer._start_save()
        begun = time.perf_counter()
        busy.append(bench.seconds(bench.epoch))
        saver.wait_copied()
        blocked.append(saver.blocked_s - before)
        saver.wait()
        written.append(time.perf_counter() - begun)
    memory = saver._memory
    pinned = memory._memory.nbytes if memory.is_pinned else 0
    if device.type == "cuda" and pinned > 1.05 * size + (1 << 20):
        raise Failed(f"{pinned} bytes are pinned for a state of {size}")
    rest_s, size_of_aim = statistics.median(written[1:]), 1.5e9
    plain_s = _plain_write(folder / "plain", size)
    aims = [
        aimed("longest block of a save", max(blocked) * 1e3, BLOCKED_AIM_S * 1e3, is_most=True, unit=" ms"),
        aimed("save until it is durable", rest_s, DURABLE_AIM_S * size / size_of_aim, is_most=True, unit=" s")
        + f" for its size (a plain write with fsync: {plain_s:.2f} s)",
    ]
    return [
        *aims,
        f"state {size / 1e9:.2f} GB; {pinned / 1e9:.2f} GB pinned before the first step, start {bench.entered_s:.1f} s",
        f"first save blocked {blocked[0] * 1e3:.1f} ms, later ones {statistics.median(blocked[1:]) * 1e3:.1f} ms;"
        f" a plain copy {copy_s * 1e3:.1f} ms; written at {size / 1e9 / rest_s:.2f} GB/s;"
        f" steps meanwhile {statistics.median(busy[1:]) / quiet_s:.2f} of the time",
    ]


def _plain_write(path: Path, size: int) -> float:
    """Return the seconds of a write of so many random bytes until they are on the disk."""
    block = os.urandom(1 << 24)
    begun = time.perf_counter()
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[: min(len(block), size - start)])
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begun
    path.unlink()
    return seconds


def _save(machine: Machine, folder: Path) -> str:
    need_bf16(machine)
    return measured(machine, folder, "saves.measure_save")


SAVES = [Check("save", "a save of 124M parameters", _save, limit_s=150.0, is_alone=True, is_first=True)]
