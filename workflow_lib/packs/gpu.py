"""One GPU for the runs of a pack: as many at once as its memory holds, by what runs of their kind have needed.

The process of the pack leases the GPU, and never starts CUDA. Each run is a process with a CUDA context of its own. The
first run is alone until it has made some steps; then others start beside it. A run that runs out of memory is tried
again alone.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from workflow_lib import config
from workflow_lib.errors import EverstepError
from workflow_lib.files import read_json, write_json
from workflow_lib.packs.forks import Task
from workflow_lib.runtime import gpus
from workflow_lib.runtime.device_lease import lease_devices
from workflow_lib.text import byte_size

if TYPE_CHECKING:
    from workflow_lib.config import Experiment
    from workflow_lib.plan import RunConfig

logger = logging.getLogger(__name__)

MEASURED_STEPS = 8  # a graph is captured in the fourth; the first validation is measured as well
SHARE = 0.9  # of the free memory: the rest is for what grows later
CONTEXT_BYTES = 1 << 30  # that CUDA takes in a process, where nvidia-smi does not say
OUT_OF_MEMORY = re.compile(r"out of memory(?!\?)|CU(BLAS|DNN)_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)")
# settings of a training that change the memory it needs
SIZES = (
    "batch_size",
    "accumulation_steps",
    "precision",
    "compile",
    "activation_checkpointing",
    "ema_decay",
    "memory_format",
    "loss_chunk",
    "loss",
    "metrics",
    "step",
    "step_params",
)

Reader: TypeAlias = Callable[[], tuple[int, int]]


class NoMemory(EverstepError):
    """A run of a pack ran out of the GPU's memory."""

    exit_code = 76  # of its fork; no command ends with it


def read_cuda() -> tuple[int, int]:
    """Return the most bytes that torch has reserved in this process, and the free bytes of the GPU."""
    import torch

    return torch.cuda.max_memory_reserved(), int(torch.cuda.mem_get_info()[0])


class Memory:
    """The memory of a GPU that runs share. All sizes are in bytes.

    free   before the first run; None if the driver does not say
    read   called in the process of a run: the bytes that it has reserved, and those that are free
    """

    def __init__(self, folder: Path, free: int | None, read: Reader = read_cuda) -> None:
        self._folder, self._free, self._read = folder, free, read
        self._capacity = 0.0  # 0 until a run is measured
        self._context = CONTEXT_BYTES
        self._needs: dict[str, int] = {}

    def measure_in(self, name: str) -> None:
        """Measure the run that this process and its forks compute from here on."""
        self._folder.mkdir(parents=True, exist_ok=True)
        sys.addaudithook(_Measurement(self._folder / f"{name}.json", self._read).watch)

    def allows(self, task: Task, running: Collection[Task]) -> bool:
        """Return True if the task may start beside those that are running."""
        others = [other for other in running if other.kind]
        if not (task.kind and others):
            return True
        if task.is_alone or any(other.is_alone for other in others):
            return False
        for other in others:
            self._take(other)
        is_known = task.kind in self._needs or all(other.kind in self._needs for other in others)
        if not (self._capacity and is_known):
            return False
        most = max(self._needs.values())
        return sum(self._needs.get(each.kind, most) for each in (*others, task)) <= self._capacity

    def _take(self, task: Task) -> None:
        """Read what the run of a task has measured, if it has."""
        path = self._folder / f"{task.name}.json"
        if not path.exists():
            return
        found = read_json(path, "reserved", "free")
        if not self._capacity:  # it was alone
            if self._free is None:
                self._free = found["free"] + found["reserved"] + CONTEXT_BYTES
            self._context = max(0, self._free - found["free"] - found["reserved"])
            self._capacity = SHARE * self._free
        need = found["reserved"] + self._context
        if need > self._needs.get(task.kind, 0):
            self._needs[task.kind] = need
            logger.info(
                "%s needs %s of the GPU's memory: %d like it at once", task.name, byte_size(need), self._fitting(need)
            )

    def _fitting(self, need: int) -> int:
        return max(1, int(self._capacity // need))


class _Measurement:
    """An audit hook in the process of a run: it writes the memory after some steps, and after the first validation."""

    def __init__(self, path: Path, read: Reader) -> None:
        self._path, self._read = path, read
        self._steps, self._is_validated = 0, False

    def watch(self, event: str, arguments: tuple[object, ...]) -> None:
        if event != "everstep" or arguments[0] not in ("commit", "validated") or self._is_validated:
            return
        self._is_validated = arguments[0] == "validated"
        self._steps += not self._is_validated
        if self._is_validated or self._steps == MEASURED_STEPS:
            reserved, free = self._read()
            write_json(self._path, {"reserved": reserved, "free": free})


def kind_of(run: RunConfig, data: str) -> str:
    """Return a digest of all that decides how much memory a run needs."""
    training = run.training.model_dump(mode="json", include=set(SIZES))
    augment = {name: bool(value) for name, value in run.augment}
    return config.digest([run.model.model_dump(mode="json"), run.optimizer.name, training, augment, data], "memory")


def is_out_of_memory(error: EverstepError) -> bool:
    """Return True if a training ended since the memory of its GPU was not enough."""
    return OUT_OF_MEMORY.search(str(error)) is not None


@contextmanager
def measured(memory: Memory | None, name: str) -> Iterator[None]:
    """Measure the run of the block if it shares a GPU, and raise NoMemory if it runs out of its memory."""
    if memory is None:
        yield
        return
    memory.measure_in(name)
    try:
        yield
    except EverstepError as error:
        if is_out_of_memory(error):
            raise NoMemory(str(error)) from error
        raise


@contextmanager
def share(
    experiment: Experiment, folder: Path, *, must_stop: Callable[[], object]
) -> Iterator[tuple[Experiment, Memory | None]]:
    """Lease a GPU for the runs of a pack; yield the experiment on that GPU, and its memory. On the CPU, change nothing.

    A device that is named (cuda:N) is not leased. `folder` is where runs write their measurements.
    """
    if not gpus.count_for(experiment.runtime.device):
        yield experiment, None
        return
    with ExitStack() as held:
        device = experiment.runtime.device
        if ":" not in device:
            (entry,) = held.enter_context(lease_devices(1, f"a pack of {experiment.name}", must_stop=must_stop))
            device, os.environ[gpus.VISIBLE] = "cuda:0", entry  # inherited by the forks, as the lease is
        runtime = experiment.runtime.model_copy(update={"device": device})
        memory = Memory(folder, free_bytes(int(device.removeprefix("cuda:"))))
        yield experiment.model_copy(update={"runtime": runtime}), memory


def free_bytes(index: int) -> int | None:
    """Return the free bytes of a visible GPU as nvidia-smi says; None if it does not (MIG, some containers)."""
    names = list(gpus.visible().values())
    if index >= len(names):
        return None
    command = ["nvidia-smi", "-i", names[index], "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=gpus.ASK_TIMEOUT_S, check=True)
        return int(answer.stdout.split()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
