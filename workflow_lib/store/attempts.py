"""The attempts of a run, each with a record in the run's workspace.

    attempts/<attempt>.json     one record an attempt: who, where, when, how it ended
    attempts/<attempt>.pulse    how far it is and how long it has run, until it ends
    checkpoints/                the store of checkpoints
    leases/                     who owns the workspace
    delivered.jsonl             each time that the run was needed and its result handed out
    metrics.jsonl               the curve, one line an epoch
    events.jsonl                what happened, appended by every attempt

An attempt is one process, the launcher, trying to finish the run. Its record is written when it begins and
again when it ends: one that still says "running" while its launcher is gone was killed. What that one had used
and reached is in its heartbeat file, which its launcher writes twice a second.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from workflow_lib.distributed.shared_state import StepRange
from workflow_lib.files import decoded, make_dirs, names_in, read_json, write_json
from workflow_lib.processes import boot_id, machine
from workflow_lib.runtime.clock import now_s, start_s
from workflow_lib.store import layout
from workflow_lib.store.lease import Holder, is_alive

logger = logging.getLogger(__name__)

HEARTBEAT_BYTES = 120


def create(workspace: Path) -> None:
    """Create the folders of the workspace; existing content is unchanged."""
    for folder in (layout.attempts_dir(workspace), layout.checkpoints_dir(workspace), layout.leases_dir(workspace)):
        make_dirs(folder)


def new_attempt() -> str:
    """Return a unique name of an attempt."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class RankProcess:
    """One training process of an attempt, told from a later one with the same number by its start time."""

    rank: int
    pid: int
    start_time: float

    @classmethod
    def of(cls, rank: int, pid: int) -> RankProcess:
        """The record of a process that exists."""
        return cls(rank, pid, start_s(pid))


@dataclass(frozen=True)
class Attempt:
    """What is known of one attempt. Times of day are UTC; `start_time` is that of `runtime.clock`."""

    attempt: str
    host: str
    boot: str
    pid: int
    start_time: float
    job: str | None
    node: str | None
    began: str
    number: int = 0  # of the run's attempts: their order, whatever the time of day was
    world_size: int = 1
    resumed_step: int | None = None
    resumed_from: str | None = None
    devices: int = 0  # GPUs that were its own, used or not
    waited_s: float = 0.0  # wait for its GPUs, not counted as used
    ranks: tuple[RankProcess, ...] = ()
    state: str = "running"
    ended: str | None = None
    reason: str | None = None
    step: int | None = None  # optimizer steps of the run that were saved when it ended
    reached: int | None = None  # those that were done
    ready_s: float | None = None  # from its start to its first step, without the wait for GPUs
    seconds: float | None = None
    gpu_seconds: float | None = None
    machine: str = ""

    def is_alive_here(self) -> bool:
        """Whether the launcher is a living process of this host."""
        return self.is_of_this_host() and is_alive(self.pid, self.start_time)

    def is_of_this_host(self) -> bool:
        """Return True if its process numbers are valid here: same host and PID namespace, not restarted since."""
        return (self.host, self.machine, self.boot) == (socket.gethostname(), machine(), boot_id())


def begin(
    workspace: Path,
    attempt: str,
    *,
    world_size: int = 1,
    resumed_step: int | None = None,
    resumed_from: str | None = None,
    devices: int = 0,
    waited_s: float = 0.0,
) -> Attempt:
    """The record of an attempt that the calling process, its launcher, begins now; on disk."""
    here = asdict(Holder.this_process(attempt))
    here.pop("timeout_s")  # the lease's own
    record = Attempt(
        **here,
        node=os.environ.get("SLURMD_NODENAME"),
        began=utc_now(),
        number=1 + max((one.number for one in list_attempts(workspace)), default=0),
        world_size=world_size,
        resumed_step=resumed_step,
        resumed_from=resumed_from,
        devices=devices,
        waited_s=round(waited_s, 3),
    )
    return _write(workspace, record)


def record_ranks(workspace: Path, attempt: str, ranks: Iterable[RankProcess]) -> Attempt:
    """The record names the training processes, so that a later attempt can end them if the launcher dies."""
    return _write(workspace, replace(read_attempt(workspace, attempt), ranks=tuple(ranks)))


def end(
    workspace: Path,
    attempt: str,
    reason: str,
    *,
    step: int | None = None,
    step_range: StepRange | None = None,
) -> Attempt:
    """The record says when and why the attempt ended, after which saved step, what it used and how far it came."""
    record = _used(read_attempt(workspace, attempt), now_s(), step_range)
    record = _write(workspace, replace(record, state="ended", ended=utc_now(), reason=reason, step=step))
    layout.heartbeat_file(workspace, attempt).unlink(missing_ok=True)
    return record


class Heartbeat:
    """Keeps on disk how far the calling launcher's attempt is: what is known of it if it is killed."""

    def __init__(self, workspace: Path, attempt: str) -> None:
        path = layout.heartbeat_file(workspace, attempt)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.write(None)

    def write(self, step_range: StepRange | None) -> None:
        """So far it has come now. One write of one size, in place: a reader sees it whole."""
        text = json.dumps({"now": now_s(), "reach": step_range})
        with contextlib.suppress(OSError):  # a full disk: only the account of a kill becomes less exact
            os.pwrite(self._file, text.ljust(HEARTBEAT_BYTES).encode(), 0)

    def close(self) -> None:
        """The file stays as it is."""
        os.close(self._file)


def read_attempt(workspace: Path, attempt: str) -> Attempt:
    """The record of one attempt; keys that a later version added are passed over."""
    content = read_json(layout.attempt_file(workspace, attempt), "ranks")
    return decoded(Attempt, {**content, "ranks": tuple(decoded(RankProcess, one) for one in content["ranks"])})


def list_attempts(workspace: Path) -> tuple[Attempt, ...]:
    """All attempts, the oldest first; of one without an end, what it had used by its last sign of life.

    A record that cannot be read is passed over with a warning.
    """
    records = []
    directory = layout.attempts_dir(workspace)
    for name in names_in(directory):
        if not name.endswith(".json"):
            continue
        try:
            record = read_attempt(workspace, name.removesuffix(".json"))
            records.append(record if record.ended else _as_of_heartbeat(workspace, record))
        except (OSError, ValueError, TypeError, OverflowError, KeyError, AttributeError) as error:
            logger.warning("an attempt's record cannot be read, and is passed over: %s (%s)", directory / name, error)
    return tuple(sorted(records, key=lambda record: (record.number, record.began, record.attempt)))


def utc_now() -> str:
    """The time of day as `2026-01-01T00:00:00.000Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _as_of_heartbeat(workspace: Path, record: Attempt) -> Attempt:
    try:
        heartbeat = json.loads(layout.heartbeat_file(workspace, record.attempt).read_bytes())
        return _used(record, heartbeat["now"], StepRange(*heartbeat["reach"]) if heartbeat["reach"] else None)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return record


def _used(record: Attempt, now: float, step_range: StepRange | None) -> Attempt:
    """Return the record with its use until ``now``; it may have resumed from an older checkpoint than planned."""
    began = record.start_time + record.waited_s
    seconds = round(now - began, 3)
    record = replace(record, seconds=seconds, gpu_seconds=round(seconds * record.devices, 3))
    if step_range is None:
        return record
    ready_s = round(step_range.ready - began, 3)
    return replace(record, resumed_step=step_range.first, reached=step_range.last, ready_s=ready_s)


def _write(workspace: Path, record: Attempt) -> Attempt:
    write_json(layout.attempt_file(workspace, record.attempt), asdict(record))
    return record
