"""Corrections of Snakemake's executor for clusters: Snakemake ends when its work does, and Ctrl-C cancels every job.

Without them, it sleeps to the end of a pause between two checks of its jobs, which grows to three minutes; a Ctrl-C
during a check cancels nothing; and jobs whose submission has begun are submitted after the others were cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from workflow_lib.slurm import polling

WAKE_S = 0.25


async def check_jobs(executor: Any) -> None:
    """Check the submitted jobs until Snakemake ends; they stay in `active_jobs` while they are checked."""
    await _pause(executor, executor.workflow.executor_plugin.common_settings.init_seconds_before_status_checks)
    while executor.wait:
        with executor.lock:
            checked = list(executor.active_jobs)
        running = {id(job) async for job in executor.check_active_jobs(checked)}
        ended = {id(job) for job in checked} - running
        with executor.lock:
            executor.active_jobs[:] = [job for job in executor.active_jobs if id(job) not in ended]
        await polling.wait(executor)


async def _pause(executor: Any, seconds: float) -> None:
    """Sleep, but not longer than Snakemake runs."""
    end = time.monotonic() + seconds
    while executor.wait and (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(left, WAKE_S))


def cancel_all(cancel: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return Snakemake's function that cancels the jobs, which now first ends the submission of jobs."""

    def cancelled(executor: Any) -> None:
        submissions = getattr(executor, "_job_submission_executor", None)  # of the executor for SLURM
        if submissions is not None:
            submissions.shutdown(wait=True, cancel_futures=True)
        cancel(executor)

    return cancelled
