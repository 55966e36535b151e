"""Free memory for a process: of the machine, within its cgroups (the limits of its job), or of its GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")
PROCESS = Path("/proc/self/cgroup")


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process may still allocate on the GPU, or on the host within the limits of its job."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([psutil.virtual_memory().available, *free_in_cgroups()])


def free_in_cgroups(root: Path = CGROUPS, process: Path = PROCESS) -> list[int]:
    """Return the free bytes of each cgroup (v1 and v2) above the process that has a limit.

    Cached pages of files count as free, since the kernel reclaims them.
    """
    return [free for folder in _cgroups(root, process) if (free := _free(folder)) is not None]


def _cgroups(root: Path, process: Path) -> Iterator[Path]:
    """Yield the folders of the memory cgroups that the process is in, from the innermost to the root."""
    try:
        lines = process.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for _, controllers, name in (line.split(":", 2) for line in lines):
        if controllers in ("", "memory"):
            top = root / controllers
            below = Path(name.lstrip("/"))
            yield from (top / part for part in (below, *below.parents))


def _free(folder: Path) -> int | None:
    """Return the bytes up to the limit of a cgroup; None without a limit."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            allowed = (folder / limit).read_text().strip()
            taken = int((folder / used).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        if allowed != "max":
            return max(0, int(allowed) - taken + int(stat.get(cached, 0)))
    return None
