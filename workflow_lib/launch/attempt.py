"""One attempt to finish a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import plan
from workflow_lib.distributed.shared_state import Control

if TYPE_CHECKING:
    from workflow_lib.config import Experiment
    from workflow_lib.data import Manifest
    from workflow_lib.training.trainer import StopEarly


@dataclass(frozen=True)
class Job:
    """What one attempt is to do."""

    experiment: Experiment
    run: plan.RunConfig
    digest: str
    manifest: Manifest
    code: str  # digest of the person's code and files
    work: Path
    workspace: Path
    attempt: str
    control: Control
    stop_early: StopEarly | None
    node: int  # which launcher this is, of ``runtime.nodes``; the first one owns the workspace
    caller: str  # a training, or which trial
