"""A stand-in for the driver's library, which knows whether it was started; compiled by the machine's C compiler."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = """
static int is_started;
int cuInit(unsigned flags) { is_started = 1; return 0; }
int cuDeviceGetCount(int *count) { if (!is_started) return 3; *count = 1; return 0; }
"""


def build(folder: Path) -> Path:
    """The library, which loads by its full path and is then known as libcuda.so.1."""
    library = folder / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=SOURCE, text=True, check=True)
    return library
