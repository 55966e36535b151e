"""Description of the machine: a full record, and a fingerprint of what can change bits.

``environment`` does not start CUDA, so launchers may call it. On CUDA, only ranks may call ``fingerprint``.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workflow_lib.runtime import git, packages
from workflow_lib.runtime.device import query_gpus

PACKAGES = [
    "everstep",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "pandas",
    "pydantic",
    "safetensors",
    "scikit-learn",
    "scipy",
    "snakemake",
    "snakemake-executor-plugin-slurm",
    "torch",
]
SCHEDULER = [
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_PARTITION",
    "SLURM_NNODES",
    "SLURMD_NODENAME",
    "PBS_JOBID",
    "PBS_JOBNAME",
    "PBS_QUEUE",
    "LSB_JOBID",
    "LSB_JOBINDEX",
    "LSB_JOBNAME",
    "LSB_QUEUE",
    "CUDA_VISIBLE_DEVICES",
]
# Environment variables that choose kernels. Those of NCCL are added, unless they cannot change results.
KERNEL_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
HARMLESS = re.compile(r"NCCL_(DEBUG\w*|SOCKET_IFNAME|SOCKET_FAMILY|IB_HCA|HOSTID|\w*TIMEOUT\w*|ASYNC_ERROR_HANDLING)")


def environment(device: torch.device) -> dict[str, Any]:
    """Return what helps to explain a result: host, software and GPUs. Does not start CUDA."""
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "command": sys.argv,
        "packages": versions(),
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": str(device),
        "gpus": query_gpus() if device.type == "cuda" else [],
        "cuda": torch.version.cuda,
        "scheduler": {name: os.environ[name] for name in SCHEDULER if name in os.environ},
        "git": git.of_code()[0],
    }


def accelerator(device: torch.device) -> dict[str, Any]:
    """Return torch's build and, on CUDA, the versions and the GPU, for the record. May start CUDA."""
    return {"torch_build": torch.__config__.show(), **(_gpu(device) if device.type == "cuda" else {})}


def fingerprint(device: torch.device, *, nodes: int = 1, nproc: int = 1) -> dict[str, Any]:
    """Return the properties that two attempts must share for bit-identical steps. On CUDA, only ranks may call this.

    On GPUs the order of sums over ranks depends on their layout on nodes; on CPUs (gloo) only on their number.
    """
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "device": device.type,
        "device_name": cpu_name() if device.type != "cuda" else torch.cuda.get_device_name(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "world_size": nodes * nproc,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        **(_gpu(device) | _cuda_switches() if device.type == "cuda" else {}),
        **({"layout": f"{nodes}x{nproc}"} if device.type == "cuda" and nodes * nproc > 1 else {}),
    }


def merge(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the fingerprints of all ranks; a property that differs becomes a list, in the order of ranks."""
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for fingerprint in found for name in fingerprint):
        values = [fingerprint.get(name) for fingerprint in found]
        merged[name] = values[0] if all(value == values[0] for value in values) else values
    return merged


def _gpu(device: torch.device) -> dict[str, Any]:
    """Return versions, and properties of the GPU that differ between the whole GPU and its MIG slices or MPS shares."""
    found = torch.cuda.get_device_properties(device)
    has_nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "device_memory": found.total_memory,
        "variables": kernel_variables(),
    }


def kernel_variables() -> dict[str, str]:
    """Return the environment variables that can change the results of kernels or NCCL."""
    return {name: os.environ[name] for name in sorted(os.environ) if _changes_sums(name)}


def _changes_sums(name: str) -> bool:
    is_nccl = name.startswith("NCCL_") and HARMLESS.fullmatch(name) is None
    return is_nccl or name in KERNEL_VARIABLES or name.startswith("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")


def _cuda_switches() -> dict[str, Any]:
    backends: Any = torch.backends
    return {
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        # torch's older names for these raise once a program has used the newer names
        "fp32_of_products": backends.cuda.matmul.fp32_precision,
        "fp32_of_convolutions": backends.cudnn.conv.fp32_precision,
        "fp32_of_recurrences": backends.cudnn.rnn.fp32_precision,
    }


def cpu_name() -> str:
    """Return the model name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(models, platform.processor())


def versions() -> dict[str, str]:
    """Return the version of each package of ``PACKAGES`` that is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = packages.version(name)
        except PackageNotFoundError:
            continue
    return found
