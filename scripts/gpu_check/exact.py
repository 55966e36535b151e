"""Exact resume: each check trains twice, the second time with kills, and compares every bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .project import DIGITS, ROOT, Check, Failed, Machine, Project, Skipped, need_bf16, prove, tail

CNN: dict[str, Any] = {"name": "cnn", "params": {"channels": [16, 32]}}
TRAINING: dict[str, Any] = {"epochs": 3, "batch_size": 128}
TEXT = {
    "data": {"name": "text", "params": {"path": "text.txt", "context": 64}},
    "model": {"name": "transformer", "params": {"layers": 2, "width": 64, "heads": 4}},
}

# Delays the copies of a save by about 0.1 s, into the next forward pass. Every kill is a SIGKILL, which cannot save.
LATE = """
import dataclasses
import torch
from workflow_lib.checkpoint import saver
from workflow_lib.prove import proof

copy_all, choose = saver._copy_all, proof._choose

def copy_late(tensors, copies):
    if torch.cuda.is_initialized():
        if torch.cuda.current_stream() == torch.cuda.default_stream():
            raise SystemExit("the copies of a save are not made on a stream of their own")
        torch.cuda._sleep(int(2e8))
    copy_all(tensors, copies)

def choose_kill(*given):
    return dataclasses.replace(choose(*given), signal="SIGKILL")

saver._copy_all, proof._choose = copy_late, choose_kill
"""


def settings(device: str, *, nproc: int = 1, model: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Return an experiment on the digits; keys of ``more`` that are not sections are settings of the training."""
    names = ("data", "optimizer", "checkpoint", "evaluate")
    sections: dict[str, Any] = {name: more.pop(name) for name in names if name in more}
    runtime = {"device": device, "nproc": nproc, **more.pop("runtime", {})}
    return {
        "data": {"name": DIGITS},
        "model": model or {"name": "mlp", "params": {"hidden": [64], "dropout": 0.2}},
        **sections,
        "training": {**TRAINING, **more},
        "runtime": runtime,
    }


def amp(machine: Machine) -> dict[str, Any]:
    """Return settings with mixed precision, EMA, accumulation and clipping; only GPUs compute in fp16."""
    precision = "fp16" if machine.has_gpu else "bf16"
    return {"precision": precision, "ema_decay": 0.9, "accumulation_steps": 2, "clip_norm": 1.0}


def _exact(machine: Machine, folder: Path, **options: Any) -> str:
    return prove(Project(folder, settings(machine.device, **options)))


def _amp(machine: Machine, folder: Path) -> str:
    return prove(Project(folder, settings(machine.device, model=CNN, **amp(machine))))


def _mapped(machine: Machine, folder: Path) -> str:
    data = {"name": DIGITS, "in_memory": False, "shard_samples": 256}
    return prove(Project(folder, settings(machine.device, model=CNN, data=data)))


def _compiled(machine: Machine, folder: Path) -> str:
    need_compiler(machine)
    return prove(Project(folder, settings(machine.device, compile=True)), kills=2)


def _transformer(machine: Machine, folder: Path) -> str:
    need_bf16(machine)
    chosen = settings(machine.device, precision="bf16", epochs=2, batch_size=32) | TEXT
    project = Project(folder, chosen)
    write_text(folder)
    return prove(project)


def write_text(folder: Path) -> None:
    """Write the text that TEXT names into the folder."""
    sources = sorted(path for path in Path(os.__file__).parent.glob("*.py"))[:12]
    text = "".join(path.read_text(errors="replace") for path in sources)
    (folder / "text.txt").write_text(text.encode("ascii", "replace").decode()[:200_000])


def _late(machine: Machine, folder: Path) -> str:
    project = Project(folder, settings(machine.device, model=CNN, accumulation_steps=2))
    return prove(project, kills=5, faults=LATE)


def need_compiler(machine: Machine) -> None:
    """Raise Skipped if something is missing that the package, torch.compile or (on a GPU) Triton needs."""
    missing = []
    if shutil.which(compiler := os.environ.get("CXX", "g++")) is None:
        missing.append(f"a C++ compiler ({compiler})")
    scheme = sysconfig.get_default_scheme()  # as Triton looks for it: Debian's posix_local has no headers
    include = sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme)
    if not (Path(include) / "Python.h").exists():
        missing.append(f"Python.h in {include} (python3-dev)")
    if machine.has_gpu:
        names = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
        if not any(map(shutil.which, names)):
            missing.append(f"a C compiler ({' or '.join(names)})")
        if find_spec("triton") is None:
            missing.append("the package triton")
    if missing:
        raise Skipped(f"torch.compile needs what is not here: {', '.join(missing)}")


def _pipeline(machine: Machine, folder: Path) -> str:
    """Run the quick pipeline in a copy of its files."""
    for name in ("snakemake", "onnxruntime", "onnxscript", "optuna", "plotly"):
        if find_spec(name) is None:
            raise Skipped(f"the package {name} is not installed here")
    copy = folder / "clone"
    copy.mkdir(parents=True)
    for name in ("Snakefile", "rules", "workflow_lib", "profiles", "config", "report"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/local", "--configfile", "config/quick.yaml"]
    if not machine.has_gpu:
        command += ["--config", "set=runtime.device=cpu"]
    paths = os.pathsep.join(filter(None, [str(copy), os.environ.get("PYTHONPATH", "")]))
    said = folder / "said.txt"
    with said.open("w") as file:
        code = subprocess.run(
            command,
            cwd=copy,
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            check=False,
        ).returncode
    if code:
        raise Failed(f"snakemake ended with {code}:\n{tail(said.read_text(errors='replace'))}")
    runs = [json.loads(path.read_text()) for path in sorted(copy.glob("results/quick/runs/*/train.json"))]
    report = copy / "results" / "quick" / "report.html"
    if not runs or not report.exists():
        raise Failed("snakemake ended with 0, but results/quick is not complete")
    kind = "cuda" if machine.has_gpu else "cpu"
    trained_on = {run["environment"]["device"] for run in runs}
    if trained_on != {kind}:
        raise Failed(f"trained on {', '.join(sorted(trained_on))} instead of {kind}")
    return f"{len(runs)} runs on {kind}, report of {report.stat().st_size / 1e3:.0f} kB"


EXACT = [
    Check("pipeline", "the quick pipeline, from data to report", _pipeline),
    Check("prove-mlp", "exact resume: MLP", _exact, is_first=True),
    Check("prove-cnn", "exact resume: CNN with batch norm", partial(_exact, model=CNN)),
    Check(
        "prove-channels",
        "exact resume: CNN in channels_last",
        partial(_exact, model=CNN, memory_format="channels_last", ema_decay=0.9),
    ),
    Check("prove-amp", "the same, fp16, EMA, accumulation, clipping", _amp, is_first=True),
    Check("prove-fsdp", "exact resume: FSDP2 on one rank", partial(_exact, model=CNN, parallel="fsdp")),
    Check("prove-compiled", "exact resume: torch.compile", _compiled),
    Check("prove-transformer", "exact resume: transformer in bf16", _transformer),
    Check("prove-mapped", "exact resume: data read from the shards", _mapped),
    Check("late-copies", "exact resume: saves copied late, SIGKILL only", _late),
]
