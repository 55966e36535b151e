"""A launcher of a run on the CPU, for the tests of its setup."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from workflow_lib import plan
from workflow_lib.config import Experiment
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.orchestrator import RootOrchestrator, Services
from workflow_lib.store.attempts import new_attempt
from workflow_lib.store.events import NAME

LAUNCHER = Ranks(is_launcher=True)
SETTINGS = {"name": "test", "seed": 11, "runtime": {"device": "cpu", "lease_wait_s": 0.0}}


Make = Callable[..., RootOrchestrator]


@pytest.fixture
def experiment() -> Experiment:
    return Experiment.model_validate(SETTINGS)


@pytest.fixture
def place(tmp_path: Path, experiment: Experiment) -> Path:
    return tmp_path / "work" / "runs" / plan.run_digest(plan.base(experiment)) / "0123456789ab"


@pytest.fixture
def make(experiment: Experiment, place: Path) -> Callable[..., RootOrchestrator]:
    def make(ranks: Ranks = LAUNCHER, **services: Any) -> RootOrchestrator:
        return RootOrchestrator(experiment, plan.base(experiment), place, new_attempt(), ranks, Services(**services))

    return make


@pytest.fixture(autouse=True)
def restored_process() -> Iterator[None]:
    """Restore the settings of the process afterwards; the orchestrator itself must remove its log handlers."""
    threads, environ = torch.get_num_threads(), dict(os.environ)
    handlers = list(logging.getLogger(NAME).handlers)
    yield
    assert logging.getLogger(NAME).handlers == handlers
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("default")
    os.environ.clear()
    os.environ.update(environ)
