"""Runs of a sweep in one pack on one GPU: the bits of single jobs, and the time of both."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

from .exact import settings
from .measuring import aimed
from .project import Check, Failed, Machine, Project

RUNS, RUNS_ON_CPU = 64, 4
SINGLE = 3  # runs that are also trained in jobs of their own
AIM = 20.0  # times as fast as one process a run
FILES = ("model.safetensors", "history.csv")


def _packed(machine: Machine, folder: Path) -> str:
    """Train a sweep in a pack, and some of its runs in jobs of their own."""
    count = RUNS if machine.has_gpu else RUNS_ON_CPU
    device = "cuda" if machine.has_gpu else "cpu"
    chosen = settings(device, runtime={"pack": "auto", "cuda_graphs": "auto"}, epochs=10)
    chosen |= {"sweep": {"seeds": count}, "evaluate": {"device": device}}  # on a GPU, the pack only trains
    projects = [Project(folder / name, chosen) for name in ("pack", "single")]
    for project in projects:
        project.prepare()
    packed, single = projects
    plan = json.loads((packed.folder / "plan.json").read_text())
    begun = time.monotonic()
    packed.run("pack", "--pack", _freeze(packed, plan), "--threads", str(_threads(count)), "--output", "pack.json")
    pack_s = time.monotonic() - begun
    codes = json.loads((packed.folder / "pack.json").read_text())["runs"]
    if failed := sorted(run for run, code in codes.items() if code):
        raise Failed(f"{len(failed)} of {len(codes)} runs of the pack failed, {failed[0]} with {codes[failed[0]]}")
    begun = time.monotonic()
    chosen_runs = [run["id"] for run in plan["runs"]][:: max(1, count // SINGLE)][:SINGLE]
    for run in chosen_runs:
        single.run(*_train(run))
    single_s = (time.monotonic() - begun) / len(chosen_runs)
    for run in chosen_runs:
        packed.run(*_train(run))  # hands the result out
        for name in FILES:
            ours, alone = (project.folder / "out" / run / name for project in (packed, single))
            if ours.read_bytes() != alone.read_bytes():
                raise Failed(f"{run}: {name} differs from that of its own job")
    found = re.search(r"needs (\S+ [GM]B) of the GPU's memory: (\d+)", packed.text)
    memory = f"; a run needs {found[1]}, {found[2]} fit at once" if found else ""
    if machine.has_gpu and not found:
        raise Failed("no run of the pack was measured")
    return (
        f"{count} MLPs in {pack_s:.1f} s, one alone in {single_s:.1f} s, equal bits; "
        + aimed(f"{count} MLPs in a pack, times one process a run", count * single_s / pack_s, AIM)
        + memory
    )


def _threads(count: int) -> int:
    return min(count, len(os.sched_getaffinity(0)))


def _train(run: str) -> tuple[str, ...]:
    return ("train", "--run", run, "--data", "data.json", "--output", f"out/{run}/train.json")


def _freeze(project: Project, plan: dict[str, list[dict[str, str]]]) -> str:
    """Freeze the pack of all runs as Snakemake does, and return its id."""
    from workflow_lib import plan as plans

    pack = plans.Pack(tuple((run["id"], run["data_id"]) for run in plan["runs"]))
    plans.freeze_pack(pack, project.folder / "work")
    data = project.folder / "results" / "check" / "data"
    data.mkdir(parents=True)
    for name in pack.data:
        (data / f"{name}.json").write_bytes((project.folder / "data.json").read_bytes())
    return pack.id


PACKS = [
    Check(
        "pack",
        "a sweep in one pack on one GPU, and its runs alone",
        _packed,
        limit_s=200.0,
        is_alone=True,
        is_first=True,
    )
]
