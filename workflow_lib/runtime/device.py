"""Resolution of `runtime.device`: the requested device is used, or an error is raised. Only `auto` falls back.

The functions that a launcher calls do not start CUDA, since a process that has started it cannot be forked.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence

import torch

from workflow_lib.errors import ConfigError, RankError
from workflow_lib.runtime import forking
from workflow_lib.runtime.batch_job import job_id
from workflow_lib.runtime.torch_internals import count_gpus_by_nvml

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
GPU_KEYS = ("index", "uuid", "driver_version", "memory.total", "compute_cap", "name")  # the name may contain commas
UNKNOWN = "[N/A]"


def visible_cuda() -> int:
    """Return the number of CUDA devices that this process may use, without starting CUDA in it."""
    if not torch.backends.cuda.is_built():
        return 0
    counted = count_gpus_by_nvml()
    return counted if counted >= 0 else count_elsewhere()


def count_elsewhere() -> int:
    """Return the number of visible GPUs, counted by CUDA in a subprocess: for MIG, and containers without NVML."""
    return _count_elsewhere(os.environ.get(VISIBLE))


def has_driver() -> bool:
    """Return True if the CUDA driver is installed. Loading its library does not start CUDA."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@functools.cache
def _count_elsewhere(visible: str | None) -> int:
    if not has_driver():
        return 0
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return int(answer.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def resolve(name: str, local_rank: int = 0, *, count: Callable[[], int] = visible_cuda) -> torch.device:
    """Return the device of a local rank: cpu, cuda (a GPU per rank), cuda:N; auto is cuda if there is a GPU, else cpu.

    mps is not supported: losses are summed in float64, which it does not have, and exact resume on it is unproven.
    Raises ConfigError without this device; RankError in a job of a scheduler, since another node may have it.
    """
    kind = ("cuda" if count() > 0 else "cpu") if name == "auto" else name
    if kind == "cpu":
        return torch.device("cpu")
    available = count()
    index = local_rank if kind == "cuda" else int(kind.removeprefix("cuda:"))
    if kind != "cuda" and local_rank > 0:
        raise ConfigError(f"runtime.device: {kind} is for one process. For several, set runtime.device: cuda")
    if index >= available:
        needed = f"cuda:{index} for local rank {local_rank}" if kind == "cuda" else kind
        lacking = RankError if job_id() else ConfigError
        raise lacking(f"runtime.device: {name} needs {needed}. {_on_this_machine(available)}")
    return torch.device("cuda", index)


def bind(device: torch.device) -> None:
    """Make the device the default for CUDA work of this process. It starts CUDA, so only ranks may call it."""
    if device.type == "cuda":
        try:
            torch.cuda.set_device(device)
        except RuntimeError as error:
            forking.explain(error)
            raise


def cuda_capability(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of the device, or of the best visible GPU if the device is ambiguous.

    A device is ambiguous if it has no index, or if CUDA may number GPUs in another order than nvidia-smi. Return None
    if the capability is unknown.
    """
    if torch.cuda.is_initialized():
        return torch.cuda.get_device_capability(device)
    found = [_capability(gpu["compute_cap"]) for gpu in query_gpus()]
    if device.index is not None and os.environ.get(ORDER) == "PCI_BUS_ID":
        return found[device.index] if device.index < len(found) else None
    known = [capability for capability in found if capability is not None]
    return max(known, default=None) if len(known) == len(found) else None


def query_gpus() -> list[dict[str, str]]:
    """Return index, UUID, driver, memory, compute capability and name of each visible GPU, in CUDA's order.

    The list is empty without `nvidia-smi`. An unknown value is "[N/A]", as in its output. Of a MIG instance only the
    UUID is known.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_KEYS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.split(", ", len(GPU_KEYS) - 1) for line in answer.stdout.splitlines()]
    gpus = [dict(zip(GPU_KEYS, map(str.strip, row), strict=True)) for row in rows if len(row) == len(GPU_KEYS)]
    visible = os.environ.get(VISIBLE)
    if visible is None:
        return gpus
    return [_named(gpus, name.strip()) for name in visible.split(",") if name.strip() not in ("", "-1")]


def _named(gpus: Sequence[dict[str, str]], name: str) -> dict[str, str]:
    """Return the GPU that an entry of CUDA_VISIBLE_DEVICES names by index, by (a prefix of) its UUID, or as MIG."""
    whole = name.removeprefix("MIG-").partition("/")[0]  # older form of a MIG instance: MIG-GPU-<uuid>/1/0
    for gpu in gpus:
        if name == gpu["index"] or (whole.startswith("GPU-") and gpu["uuid"].startswith(whole)):
            return gpu
    return {key: name if key == "uuid" else UNKNOWN for key in GPU_KEYS}


def _capability(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def check_precision(
    device: torch.device,
    precision: str,
    *,
    capability: Callable[[torch.device], tuple[int, int] | None] = cuda_capability,
) -> None:
    """Raise ConfigError if the device does not support the precision."""
    if precision == "fp32":
        return
    if device.type == "cuda":
        least = {"bf16": (8, 0), "tf32": (8, 0), "fp16": (5, 3)}[precision]
        has = capability(device)
        if has is not None and has < least:
            which = "the best" if device.index is None else device
            raise ConfigError(
                f"training.precision: {precision} needs a GPU of compute capability {least[0]}.{least[1]}; "
                f"{which} has {has[0]}.{has[1]}. Use {'fp16 or fp32' if has >= (5, 3) else 'fp32'}"
            )
    elif precision == "tf32":
        raise ConfigError(f"training.precision: tf32 exists on NVIDIA GPUs only, not on {device}. Use fp32")
    elif not _can_autocast(device, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]):
        raise ConfigError(f"training.precision: torch does not support {precision} on {device}. Use fp32")


def _on_this_machine(cuda: int) -> str:
    devices = ["auto", "cpu", *(f"cuda:{index}" for index in range(cuda))]
    visible = f" ({VISIBLE}={os.environ[VISIBLE]!r})" if VISIBLE in os.environ else ""
    return f"This machine has: {', '.join(devices)}{visible}"


def _can_autocast(device: torch.device, dtype: torch.dtype) -> bool:
    with warnings.catch_warnings(record=True) as caught:  # torch has no function that answers this
        warnings.simplefilter("always")
        torch.autocast(device.type, dtype=dtype)
    return not caught
