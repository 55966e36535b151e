"""What was spent on a run, and what of it was lost or saved: sums over the records of its attempts.

    used     wall seconds of every attempt, from the start of its launcher, and the GPUs that were its own meanwhile
    lost     steps that an interruption made a later attempt compute again, at the run's mean time for a step, and the
             start-up of every attempt that follows an interrupted one
    failed   the same after attempts that failed of themselves: by an exception of the user's code, a divergence, or
             settings that cannot be used
    saved    each further time that the finished run was needed and only handed out: what it had used, less what it lost

An attempt whose launcher saw it end is exact. One that was killed with its launcher counts until its last pulse, at
most half a second earlier, or its last checkpoint; when its node was lost, until what had reached the shared disk. The
second or so before an attempt is on record, and the handing out after it, are not counted.
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

UNDISTURBED = ("finished", "pruned")
OF_ITSELF = ("raised", "diverged", "rejected")  # beginnings of why an attempt failed that nothing interrupted


@dataclass(frozen=True)
class Account:
    """What one run, or several, used, lost and saved; times in seconds."""

    attempts: int = 0
    steps: int = 0
    redone: int = 0
    reused: int = 0
    used_s: float = 0.0
    used_gpu_s: float = 0.0
    lost_s: float = 0.0
    lost_gpu_s: float = 0.0
    saved_s: float = 0.0
    saved_gpu_s: float = 0.0
    failed: int = 0  # attempts
    failed_s: float = 0.0
    failed_gpu_s: float = 0.0

    def __add__(self, other: Account) -> Account:
        return Account(*map(operator.add, vars(self).values(), vars(other).values()))


def total(accounts: Iterable[Account]) -> Account:
    """Return the sum of the accounts."""
    return sum(accounts, Account())


def account(workspace: Path) -> Account:
    """Return the current account of the run in the workspace."""
    newest = checkpoint.read_newest(checkpoints_dir(workspace))
    attempts = settled(list_attempts(workspace), newest.step if newest else 0)
    return account_of(attempts, len(read_events(delivered_file(workspace))))


def settled(attempts: Sequence[Attempt], saved: int) -> list[Attempt]:
    """The attempts of a run whose newest checkpoint is of step ``saved``: each came as far as the next one began."""
    began = [*(one.resumed_step or 0 for one in attempts[1:]), saved]
    return [
        one if one.reached is None else replace(one, reached=max(one.reached, after))
        for one, after in zip(attempts, began, strict=False)
    ]


def account_of(attempts: Sequence[Attempt], delivered: int) -> Account:
    """The account of a run with these attempts, whose result was handed out so often."""
    steps, again = sum(map(steps_of, attempts)), redone_steps(attempts)
    used = sum(one.seconds or 0.0 for one in attempts)
    used_gpu = sum(one.gpu_seconds or 0.0 for one in attempts)
    step_s = (used - sum(map(_startup_s, attempts))) / steps if steps else 0.0
    lost = failed = 0.0
    redone = 0
    for before, attempt, repeated in zip(attempts, attempts[1:], again[1:], strict=False):
        if _has_failed_of_itself(before):
            failed += repeated * step_s + _startup_s(attempt)
        else:
            redone += repeated
            lost += repeated * step_s + (0.0 if before.reason in UNDISTURBED else _startup_s(attempt))
    reused = max(0, delivered - 1)
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
        failed=sum(map(_has_failed_of_itself, attempts)),
        failed_s=round(failed, 3),
        failed_gpu_s=round(failed * per_second, 3),
    )


def steps_of(attempt: Attempt) -> int:
    """Return the optimizer steps that the attempt computed."""
    return 0 if attempt.reached is None else attempt.reached - (attempt.resumed_step or 0)


def redone_steps(attempts: Sequence[Attempt]) -> list[int]:
    """For each attempt, in order, how many of its steps an earlier one had computed already."""
    furthest, redone = 0, []
    for one in attempts:
        reached = one.reached or 0
        redone.append(max(0, min(reached, furthest) - (one.resumed_step or 0)))
        furthest = max(furthest, reached)
    return redone


def seconds_by_job(workspaces: Iterable[Path]) -> dict[str, float]:
    """Wall seconds that the attempts of each of the scheduler's jobs used: to be compared with its own."""
    used: dict[str, float] = {}
    for one in (one for workspace in workspaces for one in list_attempts(workspace) if one.job):
        used[str(one.job)] = used.get(str(one.job), 0.0) + (one.seconds or 0.0)
    return used


def _startup_s(attempt: Attempt) -> float:
    """Until the first step; all of it for an attempt that did not come so far."""
    return (attempt.seconds or 0.0) if attempt.ready_s is None else attempt.ready_s


def _has_failed_of_itself(attempt: Attempt) -> bool:
    return (attempt.reason or "").partition(":")[0] in OF_ITSELF
