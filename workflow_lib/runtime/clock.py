"""A clock that is never set: seconds since the host started. It identifies processes and measures their time.

The time of day may be set while a process runs; the start time that psutil reports for the process then changes too.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil


def now_s() -> float:
    """Return the seconds since this host started, including sleep; the time of day if the system is not Linux."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time()


def start_s(pid: int) -> float:
    """Return the start time of the process on the same clock. Raises psutil.NoSuchProcess."""
    if sys.platform != "linux":
        return psutil.Process(pid).create_time()
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error
    return ticks / os.sysconf("SC_CLK_TCK")
