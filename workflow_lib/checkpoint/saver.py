"""Saves in the background, one at a time: the training waits only while mutable tensors are copied in memory.

The interval is fixed by the settings, in seconds or steps, or it is ``auto``: Young's interval sqrt(2 d M), where d is
the measured time that a save blocks the training and M the expected time between failures. It is at least
``MIN_INTERVAL_S`` and twice the time of a write, and at most ``MAX_INTERVAL_S``. Source: Young, CACM 17(9), 1974; Daly,
FGCS 22(3), 2006.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch

from workflow_lib.checkpoint import Checkpoint, CheckpointStore, Snapshot
from workflow_lib.checkpoint.slab import Groups, Slab
from workflow_lib.errors import RankError, WorkspaceBusy

logger = logging.getLogger(__name__)

MIN_INTERVAL_S = 10.0
MAX_INTERVAL_S = 600.0
CPU = torch.device("cpu")


def auto_interval_s(blocked_s: float, write_s: float, mtbf_s: float) -> float:
    """Return the seconds between saves that lose the least time to saving and to repeated steps."""
    best = math.sqrt(2 * blocked_s * mtbf_s)
    return min(max(best, MIN_INTERVAL_S, 2 * write_s), MAX_INTERVAL_S)


class Saver:
    """The saves of one training process.

    A GPU copies on a separate stream while the main stream continues: nothing may change the tensors of a snapshot
    until ``wait_copied`` returns.

    blocked_s         seconds that the training has waited for its saves
    longest_write_s   seconds of the longest write so far
    latest            the newest checkpoint that was published or loaded
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        interval_s: float | Literal["auto"],
        interval_steps: int | None,
        mtbf_s: float,
        device: torch.device = CPU,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.device = device
        self.saves = 0
        self.blocked_s = 0.0
        self.longest_write_s = 0.0
        self.latest: Checkpoint | None = None
        self._store = store
        self._interval_s = interval_s
        self._interval_steps = interval_steps
        self._mtbf_s = mtbf_s
        self._clock = clock
        self._memory = Slab(device)
        self._stream: torch.cuda.Stream | None = None
        self._copied: torch.cuda.Event | None = None
        self._sources: Groups = {}  # tensors the stream still reads; freed memory would be reused by the next step
        self.thread: threading.Thread | None = None
        self._fatal: WorkspaceBusy | RankError | None = None
        self._started_at = clock()
        self._saved_step = -1

    def begin_at(self, step: int, latest: Checkpoint | None) -> None:
        """Count the interval from here."""
        self._started_at, self._saved_step, self.latest = self._clock(), step, latest

    def reserve(self, tensors: Groups) -> None:
        """Allocate memory for copies of tensors of these shapes, so that the first save does not wait for it."""
        if self.device.type == "cuda":  # elsewhere it is cheap, and a training may end before it saves
            self._memory.reserve(tensors)

    def is_due(self, step: int) -> bool:
        """Return True if the interval has passed and no save is running, or if the last save failed for good."""
        if self._fatal is not None:
            return True  # the next save raises it
        if self.thread is not None and self.thread.is_alive():
            return False
        if self._interval_steps is not None:
            return step - self._saved_step >= self._interval_steps
        return self._clock() - self._started_at >= self._seconds()

    def start(self, snapshot: Snapshot) -> None:
        """Start a save. The tensors of the snapshot must not change until ``wait_copied``, and stable ones never.

        Raises WorkspaceBusy if the save before this one found that another attempt took over.
        """
        self.wait()
        begun = self._clock()
        sys.audit("everstep", "copy")
        copies = self._copy(snapshot.mutable())
        sys.audit("everstep", "copied")
        snapshot = replace(snapshot, tensors={**snapshot.tensors, **copies}, state=dict(snapshot.state))
        copied = self._copied
        self._started_at, self._saved_step = begun, snapshot.step
        self.thread = threading.Thread(target=self._write, args=(snapshot, copied), name="saver")
        self.thread.start()
        self.saves += 1
        self.blocked_s += self._clock() - begun

    def wait_copied(self) -> None:
        """Wait for the copy from the device; after that, the next optimizer step may change the parameters."""
        if self._copied is not None:
            begun = self._clock()
            self._copied.synchronize()
            self._copied, self._sources = None, {}
            self.blocked_s += self._clock() - begun

    def wait(self) -> None:
        """Wait for the running save. Raise its error if another attempt has taken over, or a rank is lost."""
        self.wait_copied()
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self._fatal is not None:
            raise self._fatal

    def finish(self, snapshot: Snapshot) -> Checkpoint | None:
        """Save, and return when the checkpoint is durable. Raises SaveError if the disk fails."""
        self.wait()
        groups = snapshot.mutable().items()
        cpu = {group: {name: tensor.detach().cpu() for name, tensor in named.items()} for group, named in groups}
        begun = self._clock()
        self.latest = self._store.publish(replace(snapshot, tensors={**snapshot.tensors, **cpu}))
        self._saved_step = snapshot.step
        self.saves += 1
        self.blocked_s += self._clock() - begun
        return self.latest

    def _seconds(self) -> float:
        if self._interval_s != "auto":
            return self._interval_s
        return auto_interval_s(self.blocked_s / max(self.saves, 1), self.longest_write_s, self._mtbf_s)

    def _copy(self, tensors: Groups) -> dict[str, dict[str, torch.Tensor]]:
        """Return copies on the host; those of a GPU are complete once the event ``self._copied`` has happened."""
        copies = self._memory.like(tensors)
        if self.device.type != "cuda":
            _copy_all(tensors, copies)
            return copies
        self._stream = self._stream or torch.cuda.Stream(self.device)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            _copy_all(tensors, copies)
        self._copied = torch.cuda.Event()
        self._copied.record(self._stream)
        self._sources = tensors
        return copies

    def _write(self, snapshot: Snapshot, copied: torch.cuda.Event | None) -> None:
        begun = self._clock()
        try:
            if copied is not None:
                torch.cuda.set_device(self.device)  # otherwise a new thread creates a context on GPU 0
                copied.synchronize()
            sys.audit("everstep", "writing")
            self.latest = self._store.publish(snapshot)
        except (WorkspaceBusy, RankError) as error:
            self._fatal = error
        except Exception as error:
            logger.warning("%s. Training continues; the next save is tried after the usual interval", error)
        self.longest_write_s = max(self.longest_write_s, self._clock() - begun)


def _copy_all(tensors: Groups, copies: Groups) -> None:
    for group, named in tensors.items():
        for name, tensor in named.items():
            copies[group][name].copy_(tensor.detach(), non_blocking=True)
