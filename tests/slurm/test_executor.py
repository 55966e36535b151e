"""Snakemake's executor for clusters, as it is corrected: which jobs it checks and cancels."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from snakemake_executor_plugin_slurm import Executor

from tests.support.warm import until
from workflow_lib.slurm import executor


def test_ctrl_c_cancels_the_job_that_is_being_submitted_and_no_job_is_submitted_after_it() -> None:
    assert "_job_submission_executor" in Executor.__post_init__.__code__.co_names
    has_begun, may_end = threading.Event(), threading.Event()
    submitted: list[int] = []
    cancelled: list[int] = []

    def submit(number: int) -> None:
        has_begun.set()
        may_end.wait()
        submitted.append(number)

    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as other:
        jobs = [pool.submit(submit, number) for number in range(3)]
        has_begun.wait()
        cancel = executor.cancel_all(lambda executor: cancelled.extend(submitted))
        ended = other.submit(cancel, SimpleNamespace(_job_submission_executor=pool))
        try:
            until(lambda: ended.done() or all(job.cancelled() for job in jobs[1:]), "the end of the queue")
        finally:
            may_end.set()
        ended.result()
    assert (submitted, cancelled) == ([0], [0])


def test_jobs_can_be_cancelled_while_they_are_checked() -> None:
    assert "_wait_for_jobs" in Executor._wait_thread.__code__.co_names
    seen: list[list[str]] = []
    settings = SimpleNamespace(common_settings=SimpleNamespace(init_seconds_before_status_checks=0))

    async def check(jobs: list[str]) -> AsyncIterator[str]:
        seen.append([*slurm.active_jobs])
        slurm.active_jobs.append("submitted meanwhile")
        slurm.wait = False
        yield jobs[1]

    slurm: Any = SimpleNamespace(
        wait=True,
        lock=threading.Lock(),
        active_jobs=["ended", "running"],
        workflow=SimpleNamespace(executor_plugin=settings),
        check_active_jobs=check,
        next_seconds_between_status_checks=0.0,
    )
    asyncio.run(executor.check_jobs(slurm))
    assert seen == [["ended", "running"]]
    assert slurm.active_jobs == ["running", "submitted meanwhile"]
