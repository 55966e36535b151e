"""GPUs of this machine, found without torch and without CUDA, since the Snakefile needs them and must stay fast.

`nvidia-smi` lists them in the order of their PCI addresses; in a container without it, the device files are counted.
CUDA_VISIBLE_DEVICES is read as CUDA reads it: the first entry that cannot be found ends the list, a repeated entry
empties it, and the first entry determines its kind: numbers, UUIDs of GPUs, or ids of MIG instances.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"
ASK_TIMEOUT_S = 60  # without persistence mode, nvidia-smi first initializes every GPU


@dataclass(frozen=True)
class Gpu:
    """A GPU: its UUID (empty if only its device file is known), and the ids of its MIG instances."""

    uuid: str
    instances: tuple[str, ...] = ()


def count(environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of GPUs (or listed MIG instances) that processes with this environment may use."""
    return len(visible(environ))


def count_for(device: str) -> int:
    """Return the number of GPUs that trainings with this `runtime.device` may use here; 0 if they use none."""
    if device == "auto":
        return count() if torch_is_for_cuda() else 0
    return count() if device.startswith("cuda") else 0


def problem(
    device: str, nproc: int, here: int, *, given: int | None = None, setting: str = "runtime.device"
) -> str | None:
    """Return why work on this device can never run on a machine with `here` GPUs; None if it can.

    `given` is the number of `--resources gpu=N`. It has priority, since `nvidia-smi` may not list all GPUs.
    """
    if not (here or device.startswith("cuda")):
        return None
    if given is not None and nproc > given:
        return (
            f"runtime.nproc: {nproc} processes need a GPU each, and --resources gpu={given} allows {given}. Allow "
            f"more, or change runtime.nproc or runtime.device"
        )
    named = int(device.removeprefix("cuda:")) + 1 if device.startswith("cuda:") else nproc
    if named <= here or given is not None:
        return None
    found = f"{setting}: {device}" if nproc == 1 else f"runtime.nproc: {nproc} processes need a GPU each"
    ids = ", ".join(f"cuda:{index}" for index in range(here))
    limit = f" ({VISIBLE}={os.environ[VISIBLE]!r})" if VISIBLE in os.environ else ""
    use = f"Use {setting}: auto or cpu" if nproc == 1 else "Change runtime.nproc or runtime.device"
    return (
        f"{found}, and this machine has {ids or 'no GPU'}{limit}. {use}; if there are GPUs that nvidia-smi does not "
        f"list, give their number: snakemake --resources gpu=N"
    )


def visible(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the GPUs that CUDA would show, in its order: each entry of CUDA_VISIBLE_DEVICES with its hardware name.

    The hardware name is the same in all processes of this machine, whatever their CUDA_VISIBLE_DEVICES.
    """
    given = environ.get(VISIBLE)
    entries = None if given is None else [entry.strip() for entry in given.split(",")]
    if entries is not None and not _kind(entries[0]):
        return {}  # empty, NoDevFiles or -1: GPUs are hidden on purpose
    gpus = installed()
    if entries is None:
        return {str(index): _name(index, gpus) for index in range(len(gpus))}
    found: dict[str, str] = {}
    for entry in entries:
        name = _find(entry, gpus) if _kind(entry) == _kind(entries[0]) else None
        if name is None:
            break
        if name in found.values():
            return {}
        found[entry] = name
    return found


def installed() -> list[Gpu]:
    """Return every GPU that the driver shows, regardless of CUDA_VISIBLE_DEVICES, in the order of PCI addresses."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):  # not installed, or without the library that it needs
        return [Gpu("") for _ in device_files()]
    gpus: list[Gpu] = []
    for line in answer.splitlines():
        if match := re.match(r"GPU \d+: .*\(UUID: ([^)]+)\)", line):
            gpus.append(Gpu(match[1]))
        elif gpus and (match := re.match(r"\s+MIG .*\(UUID: ([^)]+)\)", line)):
            gpus[-1] = Gpu(gpus[-1].uuid, (*gpus[-1].instances, match[1]))
    return gpus


def device_files() -> list[str]:
    """Return the device files of the GPUs, one for each."""
    return sorted(str(path) for path in Path("/dev").glob("nvidia*") if re.fullmatch("nvidia[0-9]+", path.name))


def torch_is_for_cuda() -> bool:
    """Return True if the installed torch was built for CUDA; reads its version file, since an import takes a second."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    return re.search(r"^cuda\b.*= *None", text, re.MULTILINE) is None


def _kind(entry: str) -> str:
    """Return `GPU-`, `MIG-` or `number`; empty for anything else, including a negative number."""
    if entry.startswith(("GPU-", "MIG-")):
        return entry[:4]
    return "number" if re.match(r"\+?\d", entry) else ""


def _find(entry: str, gpus: Sequence[Gpu]) -> str | None:
    """Return the hardware name that the entry refers to; None if there is no match, or more than one."""
    if digits := re.match(r"\+?(\d+)", entry):
        return _name(int(digits[1]), gpus) if int(digits[1]) < len(gpus) else None
    known = [gpu.uuid for gpu in gpus] if entry.startswith("GPU-") else [id for gpu in gpus for id in gpu.instances]
    if gpus and not any(gpu.uuid for gpu in gpus):
        return entry  # without nvidia-smi the entry cannot be checked
    matches = [name for name in known if name.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _name(index: int, gpus: Sequence[Gpu]) -> str:
    """Return the hardware name of a GPU; if it is divided, of its first MIG instance, since CUDA shows no other."""
    gpu = gpus[index]
    return gpu.instances[0] if gpu.instances else gpu.uuid or f"GPU {index}"
