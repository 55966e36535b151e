"""A run that takes its time, as real attempts left it: prepared, killed, finished. Each test gets its own copy."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.paced import PAUSE
from tests.support.project import SETTINGS, Project, copy, merged, prepare
from tests.support.warm import Warm, until
from workflow_lib.housekeeping import status

PACED = merged(SETTINGS, {"model": {"name": "tests.plugins.paced"}, "checkpoint": {"interval_steps": 5}})


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    with Warm() as process:
        yield process


@pytest.fixture(scope="session")
def prepared(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The run is planned and its data is there; nobody has begun. Not to be changed: copy it."""
    return prepare(tmp_path_factory.mktemp("store") / "prepared", warm, PACED)


@pytest.fixture(scope="session")
def _killed(prepared: Project) -> Project:
    project = copy(prepared, prepared.folder.with_name("killed"))
    kill_after(project, 7)
    return project


@pytest.fixture
def killed(_killed: Project, tmp_path: Path) -> Project:
    """The run, whose only attempt was killed with SIGKILL after a few steps."""
    return copy(_killed, tmp_path / "killed")


@pytest.fixture(scope="session")
def _finished(_killed: Project) -> Project:
    project = copy(_killed, _killed.folder.with_name("finished"))
    project.finish()
    return project


@pytest.fixture
def finished(_finished: Project, tmp_path: Path) -> Project:
    """The run, finished by a second attempt."""
    return copy(_finished, tmp_path / "finished")


def rows(project: Project) -> list[dict[str, Any]]:
    """The rows of its status, by way of JSON."""
    found = status.runs(project.folder / "work", project.folder / "results")
    told: list[dict[str, Any]] = json.loads(json.dumps(found, allow_nan=False))
    return told


def row(project: Project) -> dict[str, Any]:
    """The row of its only run."""
    (only,) = rows(project)
    return only


def start(project: Project, pause_s: float = 0.3, *faults: dict[str, Any]) -> int:
    """Number of the launcher of a training that takes its time."""
    return project.warm.start(project.order(*faults, **{PAUSE: str(pause_s)}))


def kill_after(project: Project, step: int, number: signal.Signals = signal.SIGKILL, pid: int | None = None) -> int:
    """Return the end of an attempt that got the signal after so many steps."""
    pid = pid or start(project)
    until(lambda: row(project)["state"] == "running" and row(project)["step"] >= step, f"step {step}")
    os.kill(pid, number)
    return project.warm.wait(pid)
