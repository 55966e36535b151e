"""Host memory that a resume needs in each rank, as counted by the kernel."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path


def the_load_is_measured() -> None:
    """Record the largest growth of each rank's memory in bytes, from the search for a checkpoint until after the load.

    The measurement ends at the first step or, with several ranks, at the warm-up passes, which every start has.
    """
    before: list[int] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "everstep" and arguments[0] == "load":
            Path("/proc/self/clear_refs").write_text("5")  # reset the peak
            before.append(_bytes("VmRSS"))
        elif event == "everstep" and arguments[0] in ("poll", "entered") and before:
            Path(f"grown-{os.environ['RANK']}.txt").write_text(str(_bytes("VmHWM") - before.pop()))

    sys.addaudithook(hook)


def _bytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError(f"this kernel does not tell {name}")
    return 1024 * int(found[1])
