"""What this machine is: all of it for the record, and the part that can change bits for the fingerprint."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workflow_lib.runtime.device import query_gpus

PACKAGES = (
    "everstep numpy onnx onnxruntime onnxscript optuna pandas pydantic safetensors scikit-learn scipy "
    "snakemake snakemake-executor-plugin-slurm torch"
).split()
SCHEDULER = (
    "SLURM_JOB_ID SLURM_JOB_NAME SLURM_JOB_PARTITION SLURM_NNODES SLURMD_NODENAME CUDA_VISIBLE_DEVICES"
).split()


def environment(device: torch.device) -> dict[str, Any]:
    """Everything about host and software that helps to explain a result. Never starts CUDA."""
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "command": sys.argv,
        "packages": _versions(),
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": str(device),
        "gpus": query_gpus() if device.type == "cuda" else [],
        **_cuda_versions(),
        "torch_build": torch.__config__.show(),
        "scheduler": {name: os.environ[name] for name in SCHEDULER if name in os.environ},
        "git": git_commit(Path.cwd()),
    }


def fingerprint(device: torch.device, world_size: int = 1) -> dict[str, Any]:
    """What two attempts must share for their steps to be equal bit by bit. On CUDA only for ranks."""
    is_cuda = device.type == "cuda"
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if is_cuda else cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "world_size": world_size,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        **(_cuda_versions() | _cuda_switches() if is_cuda else {}),
    }


def _cuda_switches() -> dict[str, Any]:
    return {
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def cpu_name() -> str:
    """Model of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(models, platform.processor())


def git_commit(folder: Path) -> str | None:
    """The commit checked out around a folder; None outside of a repository or without git."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cuda_versions() -> dict[str, Any]:
    has_nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None,
    }
