"""A machine with GPUs that are not there: `nvidia-smi` lists them, and trainings that lease one compute on the CPU.

Of the package only two answers about the machine are replaced, in every process of the pipeline: the device that a
launcher resolves, and for what torch was built. Leases lie in a folder of their own, so that tests do not meet.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.workflow.conftest import Project

SITECUSTOMIZE = """\
import importlib.abc, importlib.util, os, sys
from pathlib import Path

def gpus(module):
    module.torch_is_for_cuda = lambda: True

def device_lease(module):
    module.FOLDER = Path(os.environ["FAKED_GPUS"], "leases")

def device(module):
    launcher, real = os.getpid(), module.resolve

    def resolve(name, local_rank=0, **more):
        is_training = sys.argv[1:2] in (["train"], ["trial"])
        if is_training and os.getpid() == launcher and name in ("auto", "cuda"):
            return module.torch.device("cuda", local_rank)
        return real("cpu", local_rank, **more)

    module.resolve = resolve

PATCHES = {f"workflow_lib.runtime.{patch.__name__}": patch for patch in (gpus, device_lease, device)}

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in PATCHES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            PATCHES[name](module)

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""

# Hooks that a rank calls while its launcher holds the GPU; they record the start and end of each training.
TIMED = """\
import os, time
from pathlib import Path


def _note(what):
    line = f"{what} {time.monotonic()} {os.environ['CUDA_VISIBLE_DEVICES']} {os.getpid()}\\n"
    with Path(os.environ["FAKED_GPUS"], "trained").open("a") as file:
        file.write(line)


def on_train_start(state):
    _note("begin")
    time.sleep(0.5)


def on_train_end(state):
    _note("end")
"""

EXPERIMENT = """\
name: shared
training: {{epochs: 1, hooks: mine.timed}}
runtime: {{device: {device}, nproc: {nproc}, lease_wait_s: 0.1}}
sweep:
  grid: {{seed: {seeds}}}
"""


@dataclass(frozen=True)
class Machine:
    """The faked machine and its records."""

    folder: Path

    @property
    def leases(self) -> Path:
        """Return the folder of its leases."""
        return self.folder / "leases"

    @property
    def calls(self) -> list[str]:
        """Return the arguments of every call of nvidia-smi."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def trained(self) -> dict[str, list[tuple[float, float]]]:
        """Return the start and end times of the trainings on each GPU, in order."""
        begun: dict[str, tuple[str, float]] = {}
        found: dict[str, list[tuple[float, float]]] = {}
        for line in (self.folder / "trained").read_text().splitlines():
            what, moment, gpu, pid = line.split()
            if what == "begin":
                begun[pid] = (gpu, float(moment))
            else:
                found.setdefault(gpu, []).append((begun.pop(pid)[1], float(moment)))
        assert not begun, "a training did not end"
        return {gpu: sorted(times) for gpu, times in found.items()}

    def overlaps(self) -> list[tuple[str, float]]:
        """Return the GPUs on which two trainings overlapped, and for how many seconds."""
        return [
            (gpu, end - begin)
            for gpu, times in self.trained().items()
            for (_, end), (begin, _) in zip(times, times[1:], strict=False)
            if begin < end
        ]


def machine_with(count: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Let pipelines that the test starts run on a machine with this number of GPUs."""
    (folder / "bin").mkdir(parents=True)
    (folder / "python").mkdir()
    (folder / "python/sitecustomize.py").write_text(SITECUSTOMIZE)
    listed = "".join(f"GPU {index}: Faked (UUID: GPU-{index:08d})\n" for index in range(count))
    script = folder / "bin/nvidia-smi"
    script.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/calls"\n[ "$1" = -L ] || exit 9\nprintf "{listed}"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(folder / "python"))
    monkeypatch.setenv("FAKED_GPUS", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Machine(folder)


def write(project: Project, runs: int, device: str = "auto", nproc: int = 1) -> Project:
    """Write an experiment with this number of runs, each longer than half a second."""
    project.write(EXPERIMENT.format(device=device, nproc=nproc, seeds=list(range(runs))))
    (project.folder / "mine").mkdir()
    (project.folder / "mine/timed.py").write_text(TIMED)
    return project
