"""Process numbers mean something only within one process table: of a host, since its start, in a PID namespace.

A container may have the name of its host and a PID namespace of its own; two machines may have the same name. A process
of another table is judged as one of another host.
"""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import psutil

MARK = 12  # hexadecimal digits of the table in the name of a temporary file


def boot_id() -> str:
    """Return a name of the host's current boot; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def machine() -> str:
    """Return a name of this machine and of the PID namespace of this process, the same after a restart of the host."""
    names = ["", ""]
    with suppress(OSError):  # not Linux, or an image without a machine id
        names[0] = Path("/etc/machine-id").read_text().strip()
    with suppress(OSError):
        names[1] = str(Path("/proc/self/ns/pid").readlink())
    return " ".join(names)


def writer_mark() -> str:
    """Return 20 hexadecimal digits that name this process: 12 its process table, 8 its number in it."""
    return f"{_table(os.getpid())}{os.getpid():08x}"


def is_writer_alive(mark: str) -> bool | None:
    """Return whether a process with this mark exists; None for one of another process table.

    A later process with the same number counts as the same: what it seems to use is left alone for longer.
    """
    if mark[:MARK] != _table(os.getpid()):
        return None
    return bool(psutil.pid_exists(int(mark[MARK:], 16)))


@lru_cache(maxsize=1)
def _table(pid: int) -> str:
    """Return the digest of the process table, looked up once in each process."""
    text = "\n".join([socket.gethostname(), machine(), boot_id()])
    return hashlib.blake2b(text.encode(), digest_size=MARK // 2).hexdigest()
