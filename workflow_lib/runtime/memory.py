"""How much memory a process may still take: of the machine, of its job's control groups, of its GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")
PROCESS = Path("/proc/self/cgroup")


def free_bytes(device: torch.device) -> int:
    """Memory that this process may still take: the GPU's for a GPU, else the host's, as far as its job may go."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([psutil.virtual_memory().available, *left_in_groups()])


def left_in_groups(root: Path = CGROUPS, process: Path = PROCESS) -> list[int]:
    """What each control group above the process leaves to it (cgroup v1 and v2); empty without limits.

    Cached file pages count as free: the kernel takes them back.
    """
    return [left for folder in _groups(root, process) if (left := _left(folder)) is not None]


def _groups(root: Path, process: Path) -> Iterator[Path]:
    """The folders of the memory groups that the process is in, and of those around them."""
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return
    for _, controllers, name in (line.split(":", 2) for line in lines):
        if controllers in ("", "memory"):
            top = root / controllers
            below = Path(name.lstrip("/"))
            yield from (top / part for part in (below, *below.parents))


def _left(folder: Path) -> int | None:
    """Bytes until the limit of a group; None where it has none."""
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
