"""A run's workspace: what lies where, and who worked in it.

    attempts/<attempt>.json     one record an attempt: who, where, when, how it ended
    checkpoints/                the store of checkpoints
    leases/                     who owns the workspace
    metrics.jsonl               the curve, one line an epoch
    events.jsonl                what happened, appended by every attempt

An attempt is one process, the launcher, trying to finish the run. Its record is written when it begins and
again when it ends: one that still says "running" while its launcher is gone was killed.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

from workflow_lib.files import make_dirs, read_json, write_json
from workflow_lib.runtime.lease import boot_id, is_alive

logger = logging.getLogger(__name__)


def attempts_dir(workspace: Path) -> Path:
    """Folder of the attempts' records."""
    return workspace / "attempts"


def checkpoints_dir(workspace: Path) -> Path:
    """Folder of the checkpoints."""
    return workspace / "checkpoints"


def leases_dir(workspace: Path) -> Path:
    """Folder of the lease files."""
    return workspace / "leases"


def metrics_file(workspace: Path) -> Path:
    """The run's curve."""
    return workspace / "metrics.jsonl"


def events_file(workspace: Path) -> Path:
    """What happened in all attempts."""
    return workspace / "events.jsonl"


def create(workspace: Path) -> None:
    """The folders of the workspace exist; what was there is untouched."""
    for folder in (attempts_dir(workspace), checkpoints_dir(workspace), leases_dir(workspace)):
        make_dirs(folder)


def new_attempt() -> str:
    """A name that no other attempt has."""
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
        return cls(rank, pid, psutil.Process(pid).create_time())


@dataclass(frozen=True)
class Attempt:
    """What is known of one attempt. Times of day are UTC; `start_time` is in seconds since 1970."""

    attempt: str
    host: str
    boot: str
    pid: int
    start_time: float
    job: str | None
    node: str | None
    began: str
    world_size: int = 1
    resumed_step: int | None = None
    resumed_from: str | None = None
    devices: int = 0
    ranks: tuple[RankProcess, ...] = ()
    state: str = "running"
    ended: str | None = None
    reason: str | None = None
    step: int | None = None
    seconds: float | None = None
    gpu_seconds: float | None = None

    def is_alive_here(self) -> bool:
        """Whether the launcher is a living process of this host."""
        return self.is_of_this_host() and is_alive(self.pid, self.start_time)

    def is_of_this_host(self) -> bool:
        """Whether its process numbers mean something here: same host, not restarted since."""
        return self.host == socket.gethostname() and self.boot == boot_id()


def begin(
    workspace: Path,
    attempt: str,
    *,
    world_size: int = 1,
    resumed_step: int | None = None,
    resumed_from: str | None = None,
    devices: int = 0,
) -> Attempt:
    """The record of an attempt that the calling process, its launcher, begins now; on disk."""
    record = Attempt(
        attempt=attempt,
        host=socket.gethostname(),
        boot=boot_id(),
        pid=os.getpid(),
        start_time=psutil.Process().create_time(),
        job=os.environ.get("SLURM_JOB_ID"),
        node=os.environ.get("SLURMD_NODENAME"),
        began=utc_now(),
        world_size=world_size,
        resumed_step=resumed_step,
        resumed_from=resumed_from,
        devices=devices,
    )
    return _write(workspace, record)


def record_ranks(workspace: Path, attempt: str, ranks: Iterable[RankProcess]) -> Attempt:
    """The record names the training processes, so that a later attempt can end them if the launcher dies."""
    return _write(workspace, replace(read_attempt(workspace, attempt), ranks=tuple(ranks)))


def end(workspace: Path, attempt: str, reason: str, *, step: int | None = None) -> Attempt:
    """The record says when and why the attempt ended, after which step, and what it used."""
    record = read_attempt(workspace, attempt)
    seconds = round(time.time() - record.start_time, 3)
    return _write(
        workspace,
        replace(
            record,
            state="ended",
            ended=utc_now(),
            reason=reason,
            step=step,
            seconds=seconds,
            gpu_seconds=round(seconds * record.devices, 3),
        ),
    )


def read_attempt(workspace: Path, attempt: str) -> Attempt:
    """The record of one attempt; keys that a later version added are passed over."""
    content = read_json(attempts_dir(workspace) / f"{attempt}.json")
    known = {field.name for field in fields(Attempt)}
    record = Attempt(**{key: value for key, value in content.items() if key in known})
    return replace(record, ranks=tuple(RankProcess(**rank) for rank in content["ranks"]))


def list_attempts(workspace: Path) -> tuple[Attempt, ...]:
    """All attempts, the oldest first. A record that cannot be read is passed over with a warning."""
    records = []
    for path in attempts_dir(workspace).glob("*.json"):
        try:
            records.append(read_attempt(workspace, path.stem))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("an attempt's record cannot be read, and is passed over: %s (%s)", path, error)
    return tuple(sorted(records, key=lambda record: (record.began, record.attempt)))


def utc_now() -> str:
    """The time of day as `2026-01-01T00:00:00.000Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _write(workspace: Path, record: Attempt) -> Attempt:
    write_json(attempts_dir(workspace) / f"{record.attempt}.json", asdict(record))
    return record
