"""The attempts of a run, each with a record in the run's workspace.

    attempts/<attempt>.json     record of an attempt: process, host, times, reason of its end
    attempts/<attempt>.pulse    heartbeat: time and steps so far; removed when the attempt ends

An attempt is one launcher process that tries to finish the run. It writes its record when it begins and when it ends.
If the record says "running" but the launcher is gone, the launcher was killed; its time and steps are then in the
heartbeat file, which it writes twice a second.
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
    """Return a unique name for an attempt."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class RankProcess:
    """A training process of an attempt; its start time distinguishes it from a later process with the same number."""

    rank: int
    pid: int
    start_time: float

    @classmethod
    def of(cls, rank: int, pid: int) -> RankProcess:
        """Return the record of a running process."""
        return cls(rank, pid, start_s(pid))


@dataclass(frozen=True)
class Attempt:
    """The record of an attempt. Times of day are UTC; `start_time` is from `runtime.clock`."""

    attempt: str
    host: str
    boot: str
    pid: int
    start_time: float
    job: str | None
    node: str | None
    began: str
    number: int = 0  # counts the run's attempts, so their order does not depend on clocks
    world_size: int = 1
    resumed_step: int | None = None
    resumed_from: str | None = None
    devices: int = 0  # allocated GPUs, used or not
    cpus: int = 0  # requested for all ranks; 0: an earlier version did not record them
    waited_s: float = 0.0  # wait for GPUs, which `seconds` does not include
    ranks: tuple[RankProcess, ...] = ()
    state: str = "running"
    ended: str | None = None
    reason: str | None = None
    step: int | None = None  # last saved optimizer step of the run at the end of the attempt
    reached: int | None = None  # last computed step
    ready_s: float | None = None  # from start to first step, without the wait for GPUs
    seconds: float | None = None
    gpu_seconds: float | None = None
    cpu_seconds: float | None = None
    machine: str = ""

    def is_alive_here(self) -> bool:
        """Return True if the launcher is a live process of this host."""
        return self.is_of_this_host() and is_alive(self.pid, self.start_time)

    def is_presumed_alive(self) -> bool:
        """Return True if the attempt has not ended and its launcher is alive, or on another host."""
        return self.ended is None and (self.is_alive_here() or not self.is_of_this_host())

    def is_of_this_host(self) -> bool:
        """Return True if its process numbers are valid here: same host, same PID namespace, no reboot since."""
        return (self.host, self.machine, self.boot) == (socket.gethostname(), machine(), boot_id())


def begin(
    workspace: Path,
    attempt: str,
    *,
    world_size: int = 1,
    resumed_step: int | None = None,
    resumed_from: str | None = None,
    devices: int = 0,
    cpus: int = 0,
    waited_s: float = 0.0,
) -> Attempt:
    """Write and return the record of an attempt whose launcher is the calling process."""
    process = asdict(Holder.this_process(attempt))
    process.pop("timeout_s")  # only a lease has it
    record = Attempt(
        **process,
        node=os.environ.get("SLURMD_NODENAME"),
        began=utc_now(),
        number=1 + max((earlier.number for earlier in list_attempts(workspace)), default=0),
        world_size=world_size,
        resumed_step=resumed_step,
        resumed_from=resumed_from,
        devices=devices,
        cpus=cpus,
        waited_s=round(waited_s, 3),
    )
    return _write(workspace, record)


def record_ranks(workspace: Path, attempt: str, ranks: Iterable[RankProcess]) -> Attempt:
    """Add the training processes to the record, so that a later attempt can kill them if the launcher dies."""
    return _write(workspace, replace(read_attempt(workspace, attempt), ranks=tuple(ranks)))


def end(
    workspace: Path,
    attempt: str,
    reason: str,
    *,
    step: int | None = None,
    step_range: StepRange | None = None,
) -> Attempt:
    """Complete the record: time and reason of the end, last saved step, time used and steps computed."""
    record = _with_use(read_attempt(workspace, attempt), now_s(), step_range)
    record = _write(workspace, replace(record, state="ended", ended=utc_now(), reason=reason, step=step))
    layout.heartbeat_file(workspace, attempt).unlink(missing_ok=True)
    return record


class Heartbeat:
    """Writes the progress of the calling launcher's attempt to disk, for the case that it is killed."""

    def __init__(self, workspace: Path, attempt: str) -> None:
        path = layout.heartbeat_file(workspace, attempt)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.write(None)

    def write(self, step_range: StepRange | None) -> None:
        """Write the current time and steps: in place, in one write of constant size, so a reader never sees half."""
        text = json.dumps({"now": now_s(), "reach": step_range})
        with contextlib.suppress(OSError):  # disk full: only the account of a killed attempt is less exact
            os.pwrite(self._file, text.ljust(HEARTBEAT_BYTES).encode(), 0)

    def close(self) -> None:
        """Close the file without removing it."""
        os.close(self._file)


def read_attempt(workspace: Path, attempt: str) -> Attempt:
    """Return the record of an attempt; keys of later versions are ignored."""
    content = read_json(layout.attempt_file(workspace, attempt), "ranks")
    return decoded(Attempt, {**content, "ranks": tuple(decoded(RankProcess, rank) for rank in content["ranks"])})


def list_attempts(workspace: Path) -> tuple[Attempt, ...]:
    """Return all attempts, oldest first; time and steps of those without an end are from their last heartbeat.

    Records that cannot be read are skipped with a warning.
    """
    records = []
    directory = layout.attempts_dir(workspace)
    for name in names_in(directory):
        if not name.endswith(".json"):
            continue
        try:
            record = read_attempt(workspace, name.removesuffix(".json"))
            records.append(record if record.ended else _with_heartbeat(workspace, record))
        except (OSError, ValueError, TypeError, OverflowError, KeyError, AttributeError) as error:
            logger.warning("the record of an attempt cannot be read and is skipped: %s (%s)", directory / name, error)
    return tuple(sorted(records, key=lambda record: (record.number, record.began, record.attempt)))


def utc_now() -> str:
    """Return the time of day as `2026-01-01T00:00:00.000Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _with_heartbeat(workspace: Path, record: Attempt) -> Attempt:
    try:
        heartbeat = json.loads(layout.heartbeat_file(workspace, record.attempt).read_bytes())
        return _with_use(record, heartbeat["now"], StepRange(*heartbeat["reach"]) if heartbeat["reach"] else None)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return record


def _with_use(record: Attempt, now: float, step_range: StepRange | None) -> Attempt:
    """Return the record with time and steps until ``now``, and the step that it really resumed from."""
    began = record.start_time + record.waited_s
    seconds = round(now - began, 3)
    gpu_seconds, cpu_seconds = (round(seconds * number, 3) for number in (record.devices, record.cpus))
    record = replace(record, seconds=seconds, gpu_seconds=gpu_seconds, cpu_seconds=cpu_seconds)
    if step_range is None:
        return record
    ready_s = round(step_range.ready - began, 3)
    return replace(record, resumed_step=step_range.first, reached=step_range.last, ready_s=ready_s)


def _write(workspace: Path, record: Attempt) -> Attempt:
    write_json(layout.attempt_file(workspace, record.attempt), asdict(record))
    return record
