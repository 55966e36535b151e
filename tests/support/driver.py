"""A stand-in for the CUDA driver library that records whether it was started; built with the C compiler."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = """
static int is_started;
int cuInit(unsigned flags) { is_started = 1; return 0; }
int cuDeviceGetCount(int *count) { if (!is_started) return 3; *count = 1; return 0; }
"""


def build(folder: Path) -> Path:
    """Build the library; loaded by its full path, it is then also found as libcuda.so.1."""
    library = folder / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=SOURCE, text=True, check=True)
    return library
