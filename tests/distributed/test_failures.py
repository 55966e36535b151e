"""The launcher reports the rank that is the cause, not a rank that only lost its connection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workflow_lib.distributed import failures
from workflow_lib.errors import ConfigError

NO_SHM = (
    "NCCL error in: c10d/NCCLUtils.cpp:94, unhandled system error, NCCL version 2.27.5\n"
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.\n"
    "Last error:\nError while creating shared memory segment /dev/shm/nccl-XXXX, error: No space left on device (28)"
)
NO_INTERFACE = (
    "NCCL error in: ProcessGroupNCCL.cpp:3690, invalid usage, NCCL version 2.27.5\n"
    "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n"
    "Bootstrap : no socket interface found"
)
NO_MEMORY = (
    "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error\nncclUnhandledCudaError: Cuda failure 2 'out of memory'"
)
LOST = (
    "NCCL error in: ProcessGroupNCCL.cpp:2317, remote process exited or there was a network error, NCCL version 2.27\n"
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.\n"
    "Last error:\nsocketPollConnect: connect returned Connection refused"
)
LATE = (
    "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, NumelIn=16, "
    "NumelOut=16, Timeout(ms)=1800000) ran for 1800089 milliseconds before timing out."
)
GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4711"


def report(folder: Path, rank: int, message: str, *, at: float = 1.0, kind: str = "DistBackendError") -> None:
    failure: dict[str, Any] = {"rank": rank, "time": at, "kind": kind, "message": message, "traceback": "..."}
    (folder / f"failure-{rank}.json").write_text(json.dumps(failure))


@pytest.mark.parametrize("cause", [NO_SHM, NO_INTERFACE, NO_MEMORY])
def test_an_error_of_nccl_that_is_the_cause_is_reported_whichever_rank_failed_first(tmp_path: Path, cause: str) -> None:
    report(tmp_path, 0, LOST, at=1.0)
    report(tmp_path, 1, cause, at=2.0)
    message = str(failures.first(tmp_path, range(2), 2).error)
    assert message.startswith("rank 1 failed: DistBackendError")
    assert cause.splitlines()[-1] in message


@pytest.mark.parametrize("lost", [LOST, LATE, GLOO])
def test_a_rank_without_a_report_is_the_cause_of_a_lost_connection(tmp_path: Path, lost: str) -> None:
    report(tmp_path, 0, lost)
    report(tmp_path, 2, lost)
    assert str(failures.first(tmp_path, range(3), 3).error).startswith("rank 1 was killed and left no report")


@pytest.mark.parametrize("lost", [LOST, LATE, GLOO])
def test_if_every_rank_has_a_report_the_first_is_shown(tmp_path: Path, lost: str) -> None:
    report(tmp_path, 0, lost, at=2.0)
    report(tmp_path, 1, lost, at=1.0)
    assert str(failures.first(tmp_path, range(2), 2).error) == f"rank 1 failed: DistBackendError: {lost}"


def test_if_every_rank_of_a_node_lost_its_connection_the_cause_is_on_another_node(tmp_path: Path) -> None:
    for rank in (2, 3):
        report(tmp_path, rank, LOST)
    assert str(failures.first(tmp_path, range(2, 4), 4).error).startswith("a rank of another node was killed")


def test_a_rank_that_nccl_aborted_is_not_the_cause(tmp_path: Path) -> None:
    """NCCL's watchdog aborts the ranks that wait (SIGABRT), not the rank that is missing."""
    failures.note_killed(tmp_path, 0, "SIGABRT")
    assert str(failures.first(tmp_path, range(2), 2).error).startswith("rank 1 was killed and left no report")
    report(tmp_path, 1, "a bug in a model", at=9.0, kind="ValueError")
    assert str(failures.first(tmp_path, range(2), 2).error) == "rank 1 failed: ValueError: a bug in a model"


def test_a_rank_that_aborts_alone_is_reported(tmp_path: Path) -> None:
    failures.note_killed(tmp_path, 0, "SIGABRT")
    assert str(failures.first(tmp_path, range(1), 1).error).startswith("rank 0 was aborted (SIGABRT) by a library")


def test_a_rank_that_a_signal_ended_comes_before_ranks_that_lost_their_connection(tmp_path: Path) -> None:
    report(tmp_path, 1, GLOO)
    failures.note_killed(tmp_path, 0, "SIGKILL")
    assert str(failures.first(tmp_path, range(2), 2).error).startswith("rank 0 was killed by SIGKILL")


def test_an_error_of_this_package_keeps_its_class(tmp_path: Path) -> None:
    report(tmp_path, 1, LOST)
    report(tmp_path, 0, "training.batch_size: too large", at=5.0, kind="ConfigError")
    assert isinstance(failures.first(tmp_path, range(2), 2).error, ConfigError)


@pytest.mark.parametrize(
    ("kind", "message", "word"),
    [
        ("ValueError", "a bug in a model", "raised"),
        ("OSError", "[Errno 116] Stale file handle: '/data/words.txt'", "failed"),
        ("OSError", "[Errno 24] Too many open files: '/data/words.txt'", "failed"),
        ("OSError", "[Errno 5] Input/output error", "failed"),
        ("PermissionError", "[Errno 13] Permission denied: '/data/words.txt'", "raised"),
        ("SystemExit", "3", "raised"),
        ("ConfigError", "model.name: no weights", "rejected"),
        ("DivergedError", "the training diverged", "diverged"),
        ("SaveError", "disk full", "failed"),
        ("MemoryError", "", "failed"),
        ("RuntimeError", "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", "failed"),
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB", "failed"),
        ("AcceleratorError", "CUDA error: uncorrectable ECC error encountered", "failed"),
        ("DistBackendError", GLOO, "failed"),
        ("RuntimeError", GLOO, "failed"),
    ],
)
def test_only_errors_of_the_machine_are_interruptions(tmp_path: Path, kind: str, message: str, word: str) -> None:
    report(tmp_path, 0, message, kind=kind)
    assert failures.first(tmp_path, range(1), 1).kind == word
