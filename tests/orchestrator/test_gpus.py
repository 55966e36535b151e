"""A launcher leases its GPUs, and fails before it takes anything if there are too few."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.orchestrator.conftest import LAUNCHER, SETTINGS
from workflow_lib import plan
from workflow_lib.config import Experiment
from workflow_lib.errors import ConfigError, Stopped
from workflow_lib.orchestrator import RootOrchestrator, Services
from workflow_lib.runtime import device, gpus
from workflow_lib.runtime.device_lease import lease_devices
from workflow_lib.store.attempts import new_attempt
from workflow_lib.store.events import read_events
from workflow_lib.store.layout import events_file


def test_a_missing_device_of_the_last_rank_is_an_error_before_anything_is_taken(place: Path) -> None:
    runtime = {"device": "cuda", "nproc": 3, "lease_wait_s": 0.0}
    settings = Experiment.model_validate(SETTINGS | {"runtime": runtime})
    services = Services(resolve_device=lambda name, rank: device.resolve(name, rank, count=lambda: 2))
    root = RootOrchestrator(settings, plan.base(settings), place, new_attempt(), LAUNCHER, services)
    with pytest.raises(ConfigError, match="cuda:2 for local rank 2"), root:
        pass
    assert not place.exists()


def on_gpus(place: Path, name: str, **more: Any) -> RootOrchestrator:
    """A launcher on a machine with two GPUs, numbered 4 and 6."""
    runtime = {"device": name, "nproc": 1, "lease_wait_s": 0.0}
    settings = Experiment.model_validate(SETTINGS | {"runtime": runtime, "seed": int(place.name)})
    run = plan.base(settings)
    services = Services(
        resolve_device=lambda name, rank: device.resolve(name, rank, count=lambda: 2),
        lease_devices=partial(lease_devices, ids=("4", "6"), folder=place.parents[3] / "gpus", **more),
    )
    workspace = place.parents[1] / plan.run_digest(run) / place.name
    return RootOrchestrator(settings, run, workspace, new_attempt(), LAUNCHER, services)


def test_concurrent_trainings_get_different_gpus_unless_one_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv(gpus.VISIBLE, "4,6")
    with on_gpus(place.with_name("1"), "cuda") as first:
        assert (first.devices, os.environ[gpus.VISIBLE]) == (("4",), "4")
        with on_gpus(place.with_name("2"), "auto") as second:
            assert (second.devices, os.environ[gpus.VISIBLE]) == (("6",), "6")
            waiting = on_gpus(place.with_name("4"), "cuda", must_stop=lambda: True)
            with pytest.raises(Stopped), waiting:
                pass
            waits = [event for event in read_events(events_file(waiting.workspace)) if event["kind"] == "waiting"]
            assert [(event["attempt"], event["reason"].split(" (")[0]) for event in waits] == [
                (waiting.attempt, f"waiting for a GPU: 4 held by run {first.workspace.parent.name[:12]}")
            ]
        with on_gpus(place.with_name("3"), "cuda:1") as named:
            assert named.devices == ()
    assert os.environ[gpus.VISIBLE] == "4,6"
    assert not torch.cuda.is_initialized()
