"""Failure reports: each failed rank writes one, and its launcher finds the first cause among them."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from workflow_lib import errors
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.errors import DivergedError, EverstepError, RankError, SaveError, UserError
from workflow_lib.files import write_json

logger = logging.getLogger(__name__)

FAILED = 70  # exit code of a rank that has written a failure report
# Messages of a rank that lost its connection to another rank: a consequence, never the first cause. Other errors of
# NCCL (a full /dev/shm, a missing network interface, too little memory) can be the cause.
LOST_CONNECTION = re.compile(
    r"gloo.*(Connection|timed out|Timed out|closed)"
    r"|NCCL.*(ncclRemoteError|[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|aborted|remote process exit)"
    r"|[Ww]atchdog caught collective operation timeout|ollective operation timeout: WorkNCCL"
    r"|DistNetworkError|recvValue failed|failed to recv, got 0 bytes",
    re.DOTALL,
)
# exceptions with a cause in the machine, in whatever code they are raised: memory, a broken device, a connection
MACHINE_ERRORS = re.compile(r"MemoryError|OutOfMemoryError|AcceleratorError|KeyboardInterrupt|Dist\w*Error")
DISK_ERRNOS = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS}
# system errors that a repetition may not meet again; a missing permission is permanent
TRANSIENT_ERRNOS = sorted((errors.NOT_DAMAGE | DISK_ERRNOS) - {errno.EACCES, errno.EPERM})
MACHINE_MESSAGES = re.compile(
    r"out of memory|can't allocate memory|not enough memory|CUDA error|NCCL error|CU(BLAS|DNN|SPARSE|FFT)_STATUS"
    rf"|\[Errno ({'|'.join(map(str, TRANSIENT_ERRNOS))})\]"
)
ABORTED = "SIGABRT"  # NCCL's watchdog aborts a rank that has waited too long for another
CONTINUE = "Run the same command again to continue from the last checkpoint"

Kind = Literal["rejected", "diverged", "raised", "failed"]


@dataclass(frozen=True)
class Cause:
    """Why an attempt failed.

    rejected    a setting, the code or the data cannot be used
    diverged    a loss, gradient or metric is not finite
    raised      the user's code, or code that it calls, raised an exception; with the step and the call stack
    failed      something interrupted the attempt: a killed or lost process, memory, a disk
    """

    kind: Kind
    error: EverstepError
    step: int | None = None
    place: str | None = None


def fail(folder: Path, ranks: Ranks, error: BaseException, step: int) -> NoReturn:
    """Write the failure report of this rank and exit at once, so that the other ranks notice that it is gone."""
    # the nearest class of `workflow_lib.errors`, since the launcher raises the error again by its name
    ours = (kind.__name__ for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)
    calls = traceback.extract_tb(error.__traceback__)
    failure: Mapping[str, Any] = {
        "rank": ranks.rank,
        "time": time.monotonic(),
        "kind": next(ours, type(error).__name__),
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
        "step": step,
        "place": " > ".join([*(f"{call.filename}:{call.lineno}" for call in calls), type(error).__name__]),
    }
    report = folder / f"failure-{ranks.rank}.json"
    try:
        try:
            write_json(report, failure)
        except OSError as write_error:
            if write_error.errno != errno.EMFILE:
                raise
            # nothing else runs in this process anymore, so that its other files can be closed
            os.closerange(3, 1 << 20)
            write_json(report, failure)
    except OSError as write_error:
        # a full disk may still take an empty file, whose name tells the launcher why there is no report
        with suppress(OSError):
            (folder / f"refused-{write_error.errno}").touch()
        print(f"rank {ranks.rank} failed: {failure['kind']}: {failure['message']}", file=sys.stderr, flush=True)
    os._exit(FAILED)


def why_unwritten(folder: Path) -> str | None:
    """Return why a rank could not write its failure report; None if that is not known."""
    numbers = [int(path.name.partition("-")[2]) for path in folder.glob("refused-*")]
    return os.strerror(numbers[0]) if numbers else None


def note_killed(folder: Path, rank: int, name: str) -> None:
    """Write the failure report of a rank that a signal ended before it could write its own."""
    if name == ABORTED:
        message = (
            f"rank {rank} was aborted ({name}) by a library: NCCL does so when it has waited too long for another "
            f"rank. Its message is above. {CONTINUE}"
        )
        failure = {"rank": rank, "time": time.monotonic(), "kind": "RankError", "message": message, "aborted": True}
        write_json(folder / "failure-killed.json", failure)
        return
    message = f"rank {rank} was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}. {CONTINUE}"
    failure = {"rank": rank, "time": 0.0, "kind": "RankError", "message": message}  # sorts before the other reports
    write_json(folder / "failure-killed.json", failure)


def paths(folder: Path) -> list[Path]:
    """Return the failure reports in the folder."""
    return list(folder.glob("failure-*.json"))


def has_failed_by_itself(folder: Path) -> bool:
    """Return True if a rank failed for a reason other than a lost connection."""
    return any(not _has_lost_connection(json.loads(path.read_bytes())) for path in paths(folder))


def first(folder: Path, ranks: range, world_size: int) -> Cause:
    """Return the first failure that is not a lost connection, a mere consequence. ``ranks`` are those of this node."""
    failures = [json.loads(path.read_bytes()) for path in paths(folder)]
    failures.sort(key=lambda failure: (_has_lost_connection(failure), failure["time"]))
    if not failures or _has_lost_connection(failures[0]):
        silent = sorted({*ranks} - {failure["rank"] for failure in failures})
        if silent and (why := why_unwritten(folder)):
            unreported = SaveError(f"rank {silent[0]} failed, and could not write its report ({why}); see above")
            return Cause("failed", unreported)
        if silent or len(ranks) < world_size:
            who = f"rank {', '.join(map(str, silent))}" if silent else "a rank of another node"
            return Cause("failed", RankError(f"{who} was killed and left no report (out of memory?). {CONTINUE}"))
    failure = failures[0]
    kind = getattr(errors, failure["kind"], None)
    if isinstance(kind, type) and issubclass(kind, EverstepError):
        word: Kind = "diverged" if kind is DivergedError else "rejected" if issubclass(kind, UserError) else "failed"
        return Cause(word, kind(failure["message"]), failure.get("step"), failure.get("place"))
    logger.error("rank %d failed:\n%s", failure["rank"], failure["traceback"])
    word = "failed" if _is_machine_failure(failure) else "raised"
    error = RankError(f"rank {failure['rank']} failed: {failure['kind']}: {failure['message']}")
    return Cause(word, error, failure.get("step"), failure.get("place"))


def _is_machine_failure(failure: Mapping[str, Any]) -> bool:
    """Return True if the cause is outside the code that raised the exception, so that a repetition may succeed."""
    return (
        MACHINE_ERRORS.fullmatch(failure["kind"]) is not None
        or MACHINE_MESSAGES.search(failure["message"]) is not None
        or _has_lost_connection(failure)
    )


def _has_lost_connection(failure: Mapping[str, Any]) -> bool:
    return failure.get("aborted", False) or LOST_CONNECTION.search(failure["message"]) is not None
