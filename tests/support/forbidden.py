"""A machine that seems to have GPUs, on which every call that starts CUDA fails in a launcher.

Ranks compute on the CPU: what is forbidden is told from what they may do by the variable that torch gives them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from workflow_lib.orchestrator import RootOrchestrator, Services
from workflow_lib.runtime import device, device_lease, gpus

TOUCHED = Path("touched.txt")
GPUS = 4
# functions of each module that start CUDA or call CUDA's runtime, which has the same effect
FORBIDDEN: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (torch.backends.cudnn, ("version", "is_acceptable")),
    (torch.__config__, ("show",)),
    (torch._C, ("_show_config", "_cuda_getDeviceCount", "_cuda_init", "_cuda_setDevice", "_cuda_getDevice")),
    (
        torch.cuda,
        [
            "_lazy_init",
            "current_device",
            "current_stream",
            "get_arch_list",
            "get_device_capability",
            "get_device_name",
            "get_device_properties",
            "get_rng_state",
            "init",
            "mem_get_info",
            "set_device",
            "synchronize",
            "Stream",
            "Event",
            "cudart",
        ],
    ),
)


def _guarded(name: str, real: Callable[..., Any] | None) -> Callable[..., Any]:
    def ask(*given: Any, **options: Any) -> Any:
        if "RANK" not in os.environ:
            with TOUCHED.open("a") as file:
                file.write(f"{name}\n")
            raise RuntimeError(f"{name} was called in a launcher")
        return real(*given, **options) if real is not None else 0

    return ask


def _imitate(count_by_nvml: int) -> None:
    for module, names in FORBIDDEN:
        for name in names:
            setattr(module, name, _guarded(f"{module.__name__}.{name}", getattr(module, name, None)))
    cuda: Any = torch.cuda
    cuda._is_compiled = torch.backends.cuda.is_built = lambda: True  # type: ignore[assignment]
    cuda._device_count_nvml = lambda: count_by_nvml
    gpus.installed = lambda: [gpus.Gpu(f"GPU-{number}") for number in range(GPUS)]
    device_lease.FOLDER = Path("leases").absolute()
    begin = RootOrchestrator.__init__

    def on_cpu(self: RootOrchestrator, *given: Any) -> None:
        *others, ranks = given[:5]
        services = given[5] if len(given) > 5 else Services()
        if not ranks.is_launcher:
            services = replace(services, resolve_device=lambda name, local_rank: torch.device("cpu"))
        begin(self, *others, ranks, services)

    RootOrchestrator.__init__ = on_cpu  # type: ignore[method-assign,assignment]


def with_nvml() -> None:
    """Let NVML report the GPUs."""
    _imitate(GPUS)


def without_nvml() -> None:
    """Let NVML report no GPUs, as with MIG devices, so that a subprocess counts them."""
    _imitate(-1)
    device.count_elsewhere = lambda: GPUS
