"""Leases of GPUs in a folder of the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workflow_lib.runtime import device_lease

HOLDER = """
import os, sys, time
from pathlib import Path
from workflow_lib.runtime.device_lease import lease_devices
with lease_devices(1, "run xyz", ("0", "1"), folder=Path(sys.argv[1])):
    rank = os.fork()
    if rank:
        print(rank, flush=True)
    time.sleep(600)
"""


class Waits(Exception):
    """The lease would wait."""


def lease(folder: Path, count: int, ids: tuple[str, ...] | None = ("0", "1"), **more: Any) -> Any:
    """A lease that fails with the reason instead of waiting."""

    def fail(reason: str) -> None:
        raise Waits(reason)

    return device_lease.lease_devices(count, "run abc", ids, folder=folder, **{"report": fail, **more})


def tickets(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[0-9]*.json"))  # without unpublished tickets
