"""The cost of a run, computed from the records of its attempts.

    used     wall seconds of all attempts from the start of their launchers, and the same times the allocated GPUs,
             and times the requested CPUs (one for each rank, if an earlier version did not record them)
    lost     time of steps recomputed after an interruption, at the run's mean time per step, and the start-up of each
             attempt after an interrupted one
    failed   the same after attempts that ended by an exception of the user's code, a divergence or unusable settings
    saved    for each reuse of the finished run: the time used, without the time lost and failed

An attempt that ended normally is counted exactly; a killed one until its last heartbeat, at most half a second earlier,
or its last checkpoint. If its node was lost, it is counted until the last heartbeat that reached the shared disk. Not
counted: about a second before the record of an attempt is written, and writing the results after it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from workflow_lib import checkpoint
from workflow_lib.store.attempts import Attempt, list_attempts
from workflow_lib.store.events import read_events
from workflow_lib.store.layout import checkpoints_dir, delivered_file

COMPLETED = ("finished", "pruned")
FAILED = ("raised", "diverged", "rejected")  # reasons of failures that are no interruptions begin with one of these


@dataclass(frozen=True)
class Account:
    """The cost of one run or of several; times in seconds."""

    attempts: int = 0
    steps: int = 0
    redone: int = 0  # steps
    reused: int = 0  # times that the finished run was requested again
    used_s: float = 0.0
    used_gpu_s: float = 0.0
    lost_s: float = 0.0
    lost_gpu_s: float = 0.0
    saved_s: float = 0.0
    saved_gpu_s: float = 0.0
    failed: int = 0  # attempts
    failed_s: float = 0.0
    failed_gpu_s: float = 0.0
    used_cpu_s: float = 0.0

    def __add__(self, other: Account) -> Account:
        return Account(*map(operator.add, vars(self).values(), vars(other).values()))


def total(accounts: Iterable[Account]) -> Account:
    """Return the sum of the accounts."""
    return sum(accounts, Account())


def account(workspace: Path) -> Account:
    """Return the current account of the run in the workspace."""
    newest = checkpoint.read_newest(checkpoints_dir(workspace))
    attempts = complete_reached(list_attempts(workspace), newest.step if newest else 0)
    return account_of(attempts, len(read_events(delivered_file(workspace))))


def complete_reached(attempts: Sequence[Attempt], saved: int) -> list[Attempt]:
    """Return the attempts with the steps that they certainly reached, even if the last heartbeat is older.

    An attempt reached at least the step that the next one resumed from; the last one reached step ``saved``, that of
    the newest checkpoint.
    """
    resumed = [*(attempt.resumed_step or 0 for attempt in attempts[1:]), saved]
    return [
        attempt if attempt.reached is None else replace(attempt, reached=max(attempt.reached, following))
        for attempt, following in zip(attempts, resumed, strict=False)
    ]


def account_of(attempts: Sequence[Attempt], delivered: int) -> Account:
    """Return the account of a run from its attempts and the number of requests for its result."""
    steps, redone_by_attempt = sum(map(computed_steps, attempts)), redone_steps(attempts)
    used = sum(attempt.seconds or 0.0 for attempt in attempts)
    used_gpu = sum(attempt.gpu_seconds or 0.0 for attempt in attempts)
    used_cpu = sum(
        attempt.cpu_seconds or (attempt.seconds or 0.0) * (attempt.cpus or attempt.world_size) for attempt in attempts
    )
    step_s = (used - sum(map(_startup_s, attempts))) / steps if steps else 0.0
    lost = failed = 0.0
    redone = 0
    for before, attempt, repeated in zip(attempts, attempts[1:], redone_by_attempt[1:], strict=False):
        if _has_failed(before):
            failed += repeated * step_s + _startup_s(attempt)
        else:
            redone += repeated
            lost += repeated * step_s + (0.0 if before.reason in COMPLETED else _startup_s(attempt))
    reused = max(0, delivered - 1)  # the first request is the one that trained the run
    per_second = used_gpu / used if used else 0.0
    saved = reused * (used - lost - failed)
    return Account(
        attempts=len(attempts),
        steps=steps,
        redone=redone,
        reused=reused,
        used_s=round(used, 3),
        used_gpu_s=round(used_gpu, 3),
        lost_s=round(lost, 3),
        lost_gpu_s=round(lost * per_second, 3),
        saved_s=round(saved, 3),
        saved_gpu_s=round(saved * per_second, 3),
        failed=sum(map(_has_failed, attempts)),
        failed_s=round(failed, 3),
        failed_gpu_s=round(failed * per_second, 3),
        used_cpu_s=round(used_cpu, 3),
    )


def computed_steps(attempt: Attempt) -> int:
    """Return the number of optimizer steps that the attempt computed."""
    return 0 if attempt.reached is None else attempt.reached - (attempt.resumed_step or 0)


def redone_steps(attempts: Sequence[Attempt]) -> list[int]:
    """Return for each attempt, in order, how many of its steps an earlier attempt had computed already."""
    furthest, redone = 0, []
    for attempt in attempts:
        reached = attempt.reached or 0
        redone.append(max(0, min(reached, furthest) - (attempt.resumed_step or 0)))
        furthest = max(furthest, reached)
    return redone


def _startup_s(attempt: Attempt) -> float:
    """Return the time until the first step; the whole time of an attempt without steps."""
    return (attempt.seconds or 0.0) if attempt.ready_s is None else attempt.ready_s


def _has_failed(attempt: Attempt) -> bool:
    return (attempt.reason or "").partition(":")[0] in FAILED
