"""The job of a pack: what all its forks know."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workflow_lib.config import Experiment
    from workflow_lib.packs.gpu import Memory


@dataclass(frozen=True)
class Job:
    """Experiment, store, folder of the logs, time of the end, and two more folders.

    ``scratch`` is deleted at the end; ``prepared`` has the results that the jobs of the rules hand out.
    """

    experiment: Experiment
    work: Path
    logs: Path
    ends_at: float | None  # by time.monotonic
    scratch: Path
    prepared: Path
    memory: Memory | None = None  # of the GPU that the runs share, if they do

    def minutes_left(self) -> float | None:
        """Return the minutes to the end; None without a limit."""
        return None if self.ends_at is None else (self.ends_at - time.monotonic()) / 60
