"""Checks of several GPUs: exact DDP and FSDP2 over NCCL, signals to ranks inside a collective, GPU assignment."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

from workflow_lib.runtime import gpus

from .exact import CNN, amp, settings
from .project import Check, Failed, Machine, Project, Skipped, prove, tail

ENDED_WITHIN_S = 65.0

# Rank 0 sleeps in its ninth forward pass, so that the other ranks wait for it in a collective.
LAGGING = """
import os, time
import torch
from torch import nn
from workflow_lib.plugins import Section

class Params(Section):
    pass

class Lagging(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, spec.outputs))
        self.passes = 0

    def forward(self, inputs):
        self.passes += 1
        rank = os.environ.get("RANK", "0")
        if self.training and self.passes > 8 and os.environ.get("GPU_CHECK_LAG"):
            path = os.path.join(os.environ["GPU_CHECK_LAG"], "pid-" + rank)
            if not os.path.exists(path):
                with open(path + ".new", "w") as file:
                    file.write(str(os.getpid()))
                os.rename(path + ".new", path)
                if rank == "0":
                    time.sleep(6)
        return self.body(inputs)

def build(params, spec):
    return Lagging(spec)
"""

# A model whose state is 12 bytes a parameter: 1.2 GB.
LARGE_STATE: dict[str, Any] = {"name": "mlp", "params": {"hidden": [9000, 9000]}}
SMALL_STATE: dict[str, Any] = {"name": "mlp", "params": {"hidden": [900, 900]}}


def _several(machine: Machine, folder: Path, world: int, **options: Any) -> str:
    chosen = settings(machine.every_device, nproc=world, model=CNN, **amp(machine), **options)
    return prove(Project(folder, chosen))


def _struck(machine: Machine, folder: Path, name: str) -> str:
    """Send the signal to a rank that waits inside a collective."""
    chosen = settings(machine.every_device, nproc=2, model={"name": "mine.lagging"}, epochs=100_000)
    project = Project(folder, chosen, lagging=LAGGING)
    project.prepare()
    before = len(project.text)
    process = project.start(*project.train_words(), changes={"GPU_CHECK_LAG": str(folder)})
    project.wait_for(folder / "pid-0", process)
    project.wait_for(folder / "pid-1", process)
    time.sleep(2.0)  # by now rank 1 waits for rank 0, which sleeps for 6 s
    rank = int((folder / "pid-1").read_text())
    begun = time.monotonic()
    os.kill(rank, signal.Signals[name])
    try:
        code = process.wait(timeout=ENDED_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise Failed(
            f"not ended {ENDED_WITHIN_S:.0f} s after {name} to rank 1: {tail(project.text[before:], 3)}"
        ) from None
    took = time.monotonic() - begun
    said = tail(project.text[before:], 3)
    if name == "SIGTERM":
        if code != 75:
            raise Failed(f"ended with {code} instead of 75: {said}")
        return f"stopped and saved after {took:.1f} s"
    if code != 1 or "rank 1 " not in said or "rank 0" in said:
        raise Failed(f"ended with {code} after {took:.1f} s, and does not name rank 1: {said}")
    return f"rank 1 named after {took:.1f} s"


def _contexts(machine: Machine, folder: Path) -> str:
    """Check that each rank has a context on its own GPU and on no other."""
    project = Project(
        folder, settings("cuda", nproc=2, model={"name": "mine.lagging"}, epochs=100_000), lagging=LAGGING
    )
    project.prepare()
    process = project.start(
        *project.train_words(),
        changes={"GPU_CHECK_LAG": str(folder), "NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,ENV,TUNING,GRAPH"},
    )
    try:
        project.wait_for(folder / "pid-0", process)
        project.wait_for(folder / "pid-1", process)
        ranks = {int((folder / f"pid-{rank}").read_text()): rank for rank in range(2)}
        query = ["nvidia-smi", "--query-compute-apps=pid,gpu_uuid", "--format=csv,noheader"]
        try:
            shown = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
        except (OSError, subprocess.SubprocessError) as error:
            raise Skipped(f"nvidia-smi does not answer: {error}") from None
        rows = [(int(row[0]), row[1].strip()) for row in csv.reader(shown.splitlines()) if row and row[0].isdigit()]
    finally:
        process.terminate()
        process.wait()
    places = {rank: sorted({gpu for pid, gpu in rows if pid == number}) for number, rank in ranks.items()}
    if not any(places.values()):
        raise Skipped("nvidia-smi shows other process ids than there are here (a container)")
    if any(len(found) != 1 for found in places.values()) or places[0] == places[1]:
        raise Failed(f"GPUs of the ranks: {places}")
    return "one context per rank, each on its own GPU"


def _algorithm(machine: Machine, folder: Path) -> str:
    """Check that a strict training makes NCCL add along a ring."""
    project = Project(folder, settings("cuda", nproc=2, model=CNN, epochs=1))
    project.prepare()
    changes: dict[str, str | None] = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,ENV,TUNING,COLL"}
    said = project.run(*project.train_words(), changes={**changes, "NCCL_ALGO": None, "NCCL_PROTO": None})
    if "NCCL INFO" not in said:
        raise Failed(f"NCCL was not used: {tail(said, 3)}")
    chosen = sorted(set(re.findall(r"NCCL_(?:ALGO|PROTO) set by environment to \S+", said)))
    if not any("NCCL_ALGO" in line and "ing" in line for line in chosen):
        raise Failed(f"NCCL may choose the order of its sums: {', '.join(chosen) or 'NCCL_ALGO is not set'}")
    return ", ".join(chosen)


def _subsets(machine: Machine, folder: Path) -> str:
    """Check that the same run on other GPUs of this machine gives the same bits."""
    entries = list(gpus.visible())
    world = min(3, len(entries) // 2)  # the order of a sum matters from three ranks on
    if not world:
        raise Skipped(f"the driver lists {', '.join(entries) or 'no GPU'}")
    digests, kinds = {}, set()
    for first in (0, world):
        ids = ",".join(entries[first : first + world])
        project = Project(folder / ids, settings("cuda", nproc=world, model=CNN))
        project.prepare()
        project.run(*project.train_words(), changes={"CUDA_VISIBLE_DEVICES": ids})
        kinds.add(json.loads((project.folder / "run/train.json").read_text())["environment"]["device_name"])
        digests[ids] = hashlib.blake2b((project.folder / "run/model.safetensors").read_bytes()).hexdigest()[:8]
    if len(kinds) > 1:
        raise Skipped(f"its GPUs are of several kinds: {', '.join(sorted(kinds))}")
    if len(set(digests.values())) > 1:
        ring = ", perhaps by another order of NCCL's ring" if world > 2 else ""
        raise Failed(f"GPUs of one machine give different bits{ring}: {digests}")
    return f"GPUs {' and '.join(digests)}: equal bits"


def _no_network(machine: Machine, folder: Path) -> str:
    """Check that NCCL's own message is shown if it cannot start."""
    several = machine.gpus >= 2
    device, world = ("cuda", 2) if several else (machine.device, 1)
    chosen = settings(device, nproc=world, model=CNN, epochs=1, parallel="fsdp")
    project = Project(folder, chosen)
    project.prepare()
    process = project.start(*project.train_words(), changes={"NCCL_NET": "nonexistent"})
    code, said = process.wait(), project.text
    if code == 0 and not several:
        raise Skipped("one rank needs no connection")
    last = tail(said, 3)
    if code != 1 or "NCCL" not in last and "nccl" not in last or "left no report" in last:
        raise Failed(f"ended with {code}, and does not say what NCCL said: {last}")
    return "NCCL's error is the message"


def _resume_memory(machine: Machine, folder: Path) -> str:
    """Measure the peak host memory of the ranks in a first attempt and in a resumed attempt."""
    model = LARGE_STATE if machine.has_gpu else SMALL_STATE
    world = 2 if machine.gpus >= 2 else 1
    chosen = settings(machine.every_device, nproc=world, model=model, epochs=100_000, checkpoint={"interval_s": 5.0})
    project = Project(folder, chosen)
    project.prepare()
    size, peaks = 0, []
    for attempt in range(2):
        process = project.start(*project.train_words())
        peaks.append(_peak(project, process, attempt))
        process.terminate()
        if process.wait() != 75:
            raise Failed(f"ended with {process.returncode} instead of 75: {tail(project.text, 3)}")
        states = sorted((folder / "work").glob("runs/*/*/checkpoints/*"))
        size = max(sum(file.stat().st_size for file in state.iterdir()) for state in states if state.is_dir())
    more = max(0, peaks[1] - peaks[0]) / world
    figures = (
        f"state {size / 1e9:.2f} GB; host memory of {world} ranks {peaks[0] / 1e9:.2f} GB, "
        f"{peaks[1] / 1e9:.2f} GB in the attempt that resumes"
    )
    if more > 1.5 * size + (1 << 28):
        raise Failed(f"a resume needs several times the size of the state: {figures}")
    return figures


def _peak(project: Project, process: subprocess.Popen[str], attempt: int) -> int:
    """Return the peak sum of the processes' private memory in bytes, until 1 s after the first new save."""
    import psutil

    peak, seen, deadline = 0, 0.0, time.monotonic() + 120
    before = _saved(project)
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Failed(f"ended with {process.returncode}: {tail(project.text, 3)}")
        total = 0
        for member in psutil.Process(process.pid).children(recursive=True):
            try:
                total += member.memory_full_info().uss
            except psutil.Error:
                continue
        peak = max(peak, total)
        if _saved(project) - before and not seen:
            seen = time.monotonic()
        if seen and time.monotonic() > seen + 1:
            return peak
        time.sleep(0.1)
    raise Failed(f"attempt {attempt + 1} saved nothing in two minutes: {tail(project.text, 3)}")


def _saved(project: Project) -> set[str]:
    """Return the names of the checkpoints."""
    return {path.name for path in (project.folder / "work").glob("runs/*/*/checkpoints/step-*")}


SEVERAL = [
    *(
        Check(
            f"{kind}-{world}",
            f"exact resume: {kind.upper()}, {world} GPUs, fp16, EMA, accumulation, clipping",
            partial(_several, world=world, parallel=kind),
            is_alone=True,
            gpus=world,
        )
        for world in (2, 4)
        for kind in ("ddp", "fsdp")
    ),
    *(
        Check(
            f"struck-{name.lower()}",
            f"{name} to a rank inside a collective",
            partial(_struck, name=name),
            is_alone=True,
            gpus=2,
        )
        for name in ("SIGKILL", "SIGSTOP", "SIGTERM")
    ),
    Check("contexts", "one context per rank, on its own GPU", _contexts, is_alone=True, gpus=2, needs_gpu=True),
    Check("nccl-algorithm", "the order of NCCL's sums is fixed", _algorithm, is_alone=True, gpus=2, needs_gpu=True),
    Check("other-gpus", "other GPUs of the machine give equal bits", _subsets, is_alone=True, gpus=2, needs_gpu=True),
    Check("nccl-fails", "NCCL that cannot start says why", _no_network, needs_gpu=True),
    Check("resume-memory", "host memory of a resume", _resume_memory),
]
