"""When Snakemake asks a cluster about its jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workflow_lib.slurm import polling

LONG_S = 60.0


def executor_of(*outputs: Path, number: str) -> Any:
    job = SimpleNamespace(external_jobid=number, job=SimpleNamespace(output=outputs))
    return SimpleNamespace(wait=True, active_jobs=[job], next_seconds_between_status_checks=LONG_S)


def wait(executor: Any, limit_s: float = LONG_S / 2, after_s: Sequence[float] = (0.0, 0.0)) -> None:
    """Wait until the executor asks. Raises TimeoutError after the limit."""
    asyncio.run(asyncio.wait_for(polling.wait(executor, look_s=0.01, after_s=after_s), limit_s))


def test_a_job_is_asked_about_when_its_outputs_exist_but_not_for_ever(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    executor = executor_of(first, second, number="1")
    first.touch()
    with pytest.raises(TimeoutError):
        wait(executor, 0.2)
    second.touch()
    wait(executor)
    wait(executor)
    with pytest.raises(TimeoutError):  # it does not end: the executor's own interval counts again
        wait(executor, 0.2)
    second.unlink()
    with pytest.raises(TimeoutError):
        wait(executor, 0.2)
    second.touch()
    wait(executor)


def test_each_question_comes_its_time_after_the_outputs(tmp_path: Path) -> None:
    (output := tmp_path / "output").touch()
    executor, began = executor_of(output, number="2"), time.monotonic()
    for _ in range(2):
        wait(executor, after_s=(0.1, 0.3))
    assert time.monotonic() - began >= 0.3


def test_the_end_of_snakemake_does_not_wait_for_a_question(tmp_path: Path) -> None:
    executor = executor_of(tmp_path / "none", number="3")
    executor.wait = False
    wait(executor)
