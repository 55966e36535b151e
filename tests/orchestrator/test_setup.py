"""A launcher takes what an attempt needs, and releases it whatever fails."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.orchestrator.conftest import Make
from workflow_lib import plan
from workflow_lib.config import Experiment
from workflow_lib.errors import ConfigError, WorkspaceBusy
from workflow_lib.orchestrator import PHASES, Services
from workflow_lib.store.events import NAME, read_events
from workflow_lib.store.layout import events_file
from workflow_lib.store.lease import Lease, holder_of


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_owner_is_ready_in_the_block_and_releases_everything_after_it(make: Make, place: Path) -> None:
    with make() as root:
        assert root.device == torch.device("cpu")
        assert root.lease.holds()
        assert holder_of(place) is not None
        assert (place.parent / "config.json").exists()
        assert (place / "checkpoints").is_dir()
        root.log.info("training")
    assert holder_of(place) is None
    kinds = [event["kind"] for event in read_events(events_file(place))]
    assert kinds == ["environment", "log"]
    assert {event["attempt"] for event in read_events(events_file(place))} == {root.attempt}


def test_entering_again_changes_nothing(make: Make, place: Path) -> None:
    seeds: list[int] = []
    with make(seed=lambda seed, rank: seeds.append(seed)) as root:
        lease, before = root.lease, files(place)
        assert root.__enter__() is root
        assert root.lease is lease
        assert files(place) == before
        assert seeds == [11]


def test_releasing_again_changes_nothing(make: Make, place: Path) -> None:
    with make() as root:
        root.release()
        before = files(place)
    root.release()
    assert files(place) == before
    assert holder_of(place) is None


def test_an_orchestrator_is_for_one_attempt(make: Make) -> None:
    root = make()
    with root:
        pass
    with pytest.raises(RuntimeError, match="one attempt"):
        root.__enter__()


def test_an_orchestrator_that_failed_cannot_be_used_again(make: Make) -> None:
    def refuse(path: Path) -> None:
        raise OSError("no space")

    root = make(create_workspace=refuse)
    with pytest.raises(OSError, match="no space"):
        root.__enter__()
    with pytest.raises(RuntimeError, match="one attempt"):
        root.__enter__()


def test_a_second_attempt_finds_the_workspace_unchanged(make: Make, place: Path) -> None:
    with make():
        config = (place.parent / "config.json").read_bytes()
    with make() as root:
        assert root.lease.holds()
        assert (place.parent / "config.json").read_bytes() == config


class Failure(Exception):
    """The error of a failing service."""


SERVICES = [field.name for field in fields(Services) if field.name not in ("bind_device", "lease_devices")]


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "empty_caches"])
def test_everything_is_released_whichever_service_fails(make: Make, place: Path, name: str) -> None:
    cleared: list[bool] = []

    def fail(*_: Any, **__: Any) -> Any:
        raise Failure(name)

    with pytest.raises(Failure) as error, make(**{name: fail, "empty_caches": lambda: cleared.append(True)}):
        pytest.fail("must not get here")
    assert error.value.__notes__[0].removeprefix("while setting up: ") in [phase for phase, _, _ in PHASES]
    assert cleared == [True]
    assert logging.getLogger(NAME).handlers == []
    if place.exists():
        assert holder_of(place) is None
    with make() as root:
        assert root.lease.holds()


def test_every_phase_is_made_to_fail_by_one_of_these_services(make: Make) -> None:
    failed = set()

    def fail(*_: Any, **__: Any) -> Any:
        raise Failure

    for name in SERVICES:
        with pytest.raises(Failure) as error, make(**{name: fail}):
            pass
        failed.update(getattr(error.value, "__notes__", []))
    assert failed == {f"while setting up: {phase}" for phase, _, _ in PHASES}


def test_a_failing_release_does_not_prevent_the_others(make: Make, place: Path) -> None:
    @contextmanager
    def broken_log(*_: Any) -> Iterator[logging.Logger]:
        yield logging.getLogger(NAME)
        raise Failure

    with pytest.raises(Failure), make(open_log=broken_log):
        pass
    assert holder_of(place) is None


def test_an_error_in_the_block_releases_everything_and_is_raised(make: Make, place: Path) -> None:
    with pytest.raises(ZeroDivisionError), make():
        1 / 0  # noqa: B018
    assert holder_of(place) is None


def test_a_rejected_second_owner_changes_nothing_but_its_own_log_lines(make: Make, place: Path) -> None:
    with make() as owner:
        (place / "metrics.jsonl").write_text('{"epoch": 1}\n')
        (place / "checkpoints" / "step-1").mkdir()
        before = files(place.parents[2])
        second = make()
        with pytest.raises(WorkspaceBusy, match=owner.attempt[:8]), second:
            pytest.fail("must not get here")
        after = files(place.parents[2])
        assert owner.lease.holds()
        log = str(events_file(place).relative_to(place.parents[2]))
        assert after.pop(log).startswith(before.pop(log))
        assert after == before
        refused = read_events(events_file(place))[-1]
        assert (refused["kind"], refused["attempt"]) == ("refused", second.attempt)


def test_a_changed_frozen_configuration_is_rejected_before_the_lease(make: Make, place: Path) -> None:
    with make():
        pass
    frozen = json.loads((place.parent / "config.json").read_text())
    (place.parent / "config.json").write_text(json.dumps(frozen | {"seed": 12}))
    before = sorted(files(place / "leases"))
    with pytest.raises(ConfigError, match="changed"), make():
        pass
    assert sorted(files(place / "leases")) == before


def test_the_workspace_of_a_killed_owner_is_taken_over_at_once(make: Make, place: Path, experiment: Experiment) -> None:
    program = (
        "import sys, time; from pathlib import Path; from workflow_lib import plan\n"
        "from workflow_lib.store.lease import Lease\n"
        "lease = Lease.acquire(Path(sys.argv[1]), 'b' * 32, timeout_s=60.0)\n"
        "print('held', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(place)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(WorkspaceBusy, match=f"pid {owner.pid}"), make():
            pass
    finally:
        owner.kill()
        owner.communicate()
    with make() as root:
        assert root.lease.holds()


def test_the_docstring_lists_the_phases() -> None:
    import workflow_lib.orchestrator as module

    assert module.__doc__ is not None
    listed = [line.split()[1] for line in module.__doc__.splitlines() if line[:5].strip().isdigit()]
    assert listed == [name for name, _, _ in PHASES]
    assert [name for name, _, every_rank in PHASES if every_rank] == ["determinism", "runtime", "logging"]


def test_the_default_services_are_the_real_ones() -> None:
    assert Services().acquire_lease == Lease.acquire
    assert Services().record_config is plan.freeze
