"""Why ranks failed: each leaves a file in the folder that it shares with its launcher, which finds the first cause."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from workflow_lib import errors
from workflow_lib.errors import EverstepError, RankError
from workflow_lib.files import write_json
from workflow_lib.runtime.ranks import Ranks

logger = logging.getLogger(__name__)

FAILED = 70  # exit code of a rank whose error lies in a file
# messages of a rank that lost its partner: never the first cause. Other errors of NCCL (a full /dev/shm, a missing
# network interface, too little memory) can be the cause
LOST_PARTNER = re.compile(
    r"gloo.*(Connection|timed out|Timed out|closed)"
    r"|NCCL.*(ncclRemoteError|[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|aborted|remote process exit)"
    r"|[Ww]atchdog caught collective operation timeout|ollective operation timeout: WorkNCCL"
    r"|DistNetworkError|recvValue failed|failed to recv, got 0 bytes",
    re.DOTALL,
)
ABORTED = "SIGABRT"  # NCCL's watchdog ends a rank this way if it has waited too long for another rank


def fail(folder: Path, ranks: Ranks, error: BaseException) -> NoReturn:
    """This process ends; the launcher can read what happened, and the others notice that it is gone."""
    failure: Mapping[str, Any] = {
        "rank": ranks.rank,
        "time": time.monotonic(),
        "kind": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    try:
        write_json(folder / f"failure-{ranks.rank}.json", failure)
    except OSError:  # the disk is full, say: the job's log has the last word
        print(f"rank {ranks.rank} failed: {failure['kind']}: {failure['message']}", file=sys.stderr, flush=True)
    os._exit(FAILED)


def note_killed(folder: Path, rank: int, name: str) -> None:
    """Write the failure report of a rank that a signal ended before it could write its own."""
    if name == ABORTED:
        message = (
            f"rank {rank} was aborted ({name}) by a library: NCCL does so when it has waited too long for another "
            f"rank. Its message is above. Run the same command again to go on from the last checkpoint"
        )
        failure = {"rank": rank, "time": time.monotonic(), "kind": "RankError", "message": message, "aborted": True}
        write_json(folder / "failure-killed.json", failure)
        return
    message = (
        f"killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}. Run the same command again to go on "
        f"from the last checkpoint"
    )
    failure = {"rank": rank, "time": 0.0, "kind": "RankError", "message": f"rank {rank} was {message}"}
    write_json(folder / "failure-killed.json", failure)


def paths(folder: Path) -> list[Path]:
    """The files of the ranks that failed."""
    return list(folder.glob("failure-*.json"))


def first(folder: Path, ranks: range, world_size: int) -> EverstepError:
    """Return the error of the rank that failed first, not of one that lost its partner. ``ranks`` are this node's."""
    failures = [json.loads(path.read_text()) for path in paths(folder)]
    failures.sort(key=lambda failure: (_has_lost_partner(failure), failure["time"]))
    if not failures or _has_lost_partner(failures[0]):
        silent = sorted({*ranks} - {failure["rank"] for failure in failures})
        if silent or len(ranks) < world_size:
            who = f"rank {', '.join(map(str, silent))}" if silent else "a rank of another node"
            return RankError(
                f"{who} was killed without a word (out of memory?). Run the same command again to go on from the last "
                f"checkpoint"
            )
    failure = failures[0]
    kind = getattr(errors, failure["kind"], None)
    if isinstance(kind, type) and issubclass(kind, EverstepError):
        return kind(failure["message"])
    logger.error("rank %d failed:\n%s", failure["rank"], failure["traceback"])
    return RankError(f"rank {failure['rank']} failed: {failure['kind']}: {failure['message']}")


def _has_lost_partner(failure: Mapping[str, Any]) -> bool:
    return failure.get("aborted", False) or LOST_PARTNER.search(failure["message"]) is not None
