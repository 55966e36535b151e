"""Marks that identify a process beyond its number, which is unique only in one process table.

A process table belongs to a host, its current boot, and a PID namespace. A container may have the name of its host, and
two machines may have the same name. A process of another table is treated as a process of another host.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import lru_cache
from getpass import getuser
from pathlib import Path

MARK = 12  # hexadecimal digits of the process table in a mark


def host() -> str:
    """Return the name of this host, as `socket.gethostname` does, without importing that module."""
    return os.uname().nodename


def user() -> str:
    """Return the name of the user; the number of one without a name, as in many containers."""
    try:
        return getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def boot_id() -> str:
    """Return the id of the host's current boot; empty if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def machine() -> str:
    """Return the ids of this machine and of this process's PID namespace; both are the same after a reboot."""
    names = ["", ""]
    with suppress(OSError):  # not Linux, or an image without a machine id
        names[0] = Path("/etc/machine-id").read_text(encoding="utf-8").strip()
    with suppress(OSError):
        names[1] = str(Path("/proc/self/ns/pid").readlink())
    return " ".join(names)


def writer_mark() -> str:
    """Return 20 hexadecimal digits that identify this process: 12 for its process table, 8 for its number."""
    return f"{_table(os.getpid())}{os.getpid():08x}"


def is_writer_alive(mark: str) -> bool | None:
    """Return True if a process with this mark exists; None if it is of another process table.

    A later process with the same number counts as the same one; the only effect is that its files are kept for longer.
    """
    if mark[:MARK] != _table(os.getpid()):
        return None
    import psutil  # here, since jobs that only hand out results need it not

    return bool(psutil.pid_exists(int(mark[MARK:], 16)))


@lru_cache(maxsize=1)
def _table(pid: int) -> str:
    """Return the digest of the process table.

    `pid` is only the key of the cache: a forked process, perhaps in another namespace, computes the digest again.
    """
    text = "\n".join([host(), machine(), boot_id()])
    return hashlib.blake2b(text.encode(), digest_size=MARK // 2).hexdigest()
