"""Pauses between Snakemake's questions to SLURM: one ends a few seconds after a job has its outputs.

The executor asks after ten seconds, then ever more rarely, up to every three minutes. A job's results would wait for
that, and so would the end of Snakemake. The outputs of a job are in a folder that this host shares with its node.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOOK_S = 0.25  # between two looks at the outputs
MOST_LOOKS_PER_S = 200  # at jobs
# from the time that the outputs of a job exist to each question about it: its two Snakemakes still have to end
AFTER_S = (3.0, 10.0)

_known: dict[str, tuple[float, int]] = {}  # of a job by its number: when its outputs were seen, and questions since


async def wait(executor: Any, look_s: float = LOOK_S, after_s: Sequence[float] = AFTER_S) -> None:
    """Wait for the executor's next question, but not longer than Snakemake runs."""
    ends_at = time.monotonic() + executor.next_seconds_between_status_checks
    while executor.wait and (left_s := ends_at - time.monotonic()) > 0:
        jobs = list(executor.active_jobs)
        await asyncio.sleep(min(left_s, max(look_s, len(jobs) / MOST_LOOKS_PER_S)))
        if [job for job in jobs if _must_ask(job, after_s)]:  # of all, since it takes notes
            return


def _must_ask(submitted: Any, after_s: Sequence[float]) -> bool:
    """Return True if the outputs of the job have existed for long enough to ask whether it has ended."""
    number, outputs = str(submitted.external_jobid), list(submitted.job.output)
    if not outputs or not all(Path(path).exists() for path in outputs):
        _known.pop(number, None)
        return False
    seen_at, asked = _known.setdefault(number, (time.monotonic(), 0))
    if asked == len(after_s) or time.monotonic() - seen_at < after_s[asked]:
        return False
    _known[number] = (seen_at, asked + 1)
    return True
