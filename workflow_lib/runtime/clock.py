"""A clock that nobody sets: processes are known, and their time is counted, by seconds since their host started.

The time of day may be set while they run, and takes with it what the system says of when they started.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil


def now_s() -> float:
    """Seconds since this host started, also those that it slept; of the time of day where the system is not Linux."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time()


def start_s(pid: int) -> float:
    """When the process started, by the same clock. Raises psutil.NoSuchProcess."""
    if sys.platform != "linux":
        return psutil.Process(pid).create_time()
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error
    return ticks / os.sysconf("SC_CLK_TCK")
