"""Ranks set up what they compute with, and leave the workspace to the launcher."""

from __future__ import annotations

import logging
import multiprocessing
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.orchestrator.conftest import LAUNCHER, SETTINGS, Make
from workflow_lib import plan
from workflow_lib.config import Experiment
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.orchestrator import RootOrchestrator
from workflow_lib.store.attempts import new_attempt
from workflow_lib.store.events import NAME, read_events
from workflow_lib.store.layout import events_file
from workflow_lib.store.lease import holder_of


def test_ranks_are_seeded_and_bound_but_own_nothing(make: Make, place: Path) -> None:
    done: list[str] = []
    services = {
        name: (lambda *_, name=name, **__: done.append(name))
        for name in ("create_workspace", "record_config", "end_orphans", "acquire_lease", "report_environment")
    }
    bound: list[torch.device] = []
    for rank in range(2):
        ranks = Ranks(rank=rank, local_rank=rank, world_size=2)
        with make(ranks, bind_device=bound.append, **services) as root:
            assert root.device == torch.device("cpu")
            assert root.log.level == (logging.INFO if rank == 0 else logging.WARNING)
    assert done == []
    assert bound == [torch.device("cpu")] * 2
    assert not place.exists()


def test_the_launcher_of_another_node_owns_nothing(make: Make, place: Path) -> None:
    with make(replace(LAUNCHER, node=1)):
        assert not place.exists()


def test_the_launcher_binds_no_device(make: Make) -> None:
    bound: list[torch.device] = []
    with make(bind_device=bound.append):
        assert bound == []


def test_ranks_draw_different_numbers_and_the_same_at_every_start(make: Make) -> None:
    def draw(rank: int) -> tuple[float, float]:
        with make(Ranks(rank=rank, local_rank=rank, world_size=2)):
            return random.random(), torch.rand(1).item()

    assert draw(0) == draw(0) != draw(1)


@pytest.mark.parametrize(("determinism", "mode"), [("strict", 2), ("warn", 1), ("standard", 0)])
def test_determinism_follows_the_setting(place: Path, determinism: str, mode: int) -> None:
    settings = Experiment.model_validate(SETTINGS | {"training": {"determinism": determinism}})
    run = plan.base(settings)
    place = place.parents[1] / plan.run_digest(run) / place.name
    with RootOrchestrator(settings, run, place, new_attempt(), LAUNCHER):
        assert torch.get_deterministic_debug_mode() == mode
        assert torch.backends.cudnn.benchmark is (mode == 0)


def forked(make: Make, answer: Any) -> None:
    with make(Ranks(rank=1, local_rank=1, world_size=2)) as root:
        root.log.info("hidden")
        root.log.warning("shown")
        answer.put((root.device.type, torch.get_num_threads(), len(logging.getLogger(NAME).handlers)))


def test_a_forked_rank_sets_itself_up_and_leaves_the_lease_to_its_launcher(make: Make, place: Path) -> None:
    fork = multiprocessing.get_context("fork")
    with make() as root:
        answer = fork.Queue()
        rank = fork.Process(target=forked, args=(make, answer))
        rank.start()
        assert answer.get(timeout=300) == ("cpu", 1, 2)
        rank.join()
        assert root.lease.holds()
        assert holder_of(place) is not None
    messages = [event["message"] for event in read_events(events_file(place)) if event["kind"] == "log"]
    assert messages == ["shown"]


def compute(place: Path, answer: Any) -> None:
    with two_threads(place, Ranks(world_size=1)):
        answer.put((torch.get_num_threads(), torch.ones(2_000_000).relu().sum().item()))


def two_threads(place: Path, ranks: Ranks) -> RootOrchestrator:
    settings = Experiment.model_validate(SETTINGS | {"runtime": {"device": "cpu", "threads": 2}})
    return RootOrchestrator(settings, plan.base(settings), place, new_attempt(), ranks)


def test_ranks_compute_with_their_threads_even_if_the_launcher_has_computed(place: Path) -> None:
    fork = multiprocessing.get_context("fork")
    with two_threads(place, LAUNCHER):
        torch.ones(2_000_000).relu().sum()
        answer = fork.Queue()
        rank = fork.Process(target=compute, args=(place, answer))
        rank.start()
        try:
            assert answer.get(timeout=300) == (2, 2_000_000)
        finally:
            rank.kill()
            rank.join()
