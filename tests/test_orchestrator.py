import json
import logging
import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from workflow_lib import plan
from workflow_lib.config import Experiment
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.errors import ConfigError, Stopped, WorkspaceBusy
from workflow_lib.orchestrator import PHASES, RootOrchestrator, Services
from workflow_lib.runtime import device, gpus
from workflow_lib.runtime.device_lease import lease_devices
from workflow_lib.store.attempts import new_attempt
from workflow_lib.store.events import NAME, read_events
from workflow_lib.store.layout import events_file
from workflow_lib.store.lease import Lease, holder_of

LAUNCHER = Ranks(is_launcher=True)
SETTINGS = {"name": "test", "seed": 11, "runtime": {"device": "cpu", "lease_wait_s": 0.0}}


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
def process_as_it_was() -> Iterator[None]:
    """What the phases set for the whole process is put back; log handlers must be gone by themselves."""
    threads, environ = torch.get_num_threads(), dict(os.environ)
    handlers = list(logging.getLogger(NAME).handlers)
    yield
    assert logging.getLogger(NAME).handlers == handlers
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("default")
    os.environ.clear()
    os.environ.update(environ)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


Make = Callable[..., RootOrchestrator]


def test_the_owner_is_ready_inside_and_has_given_everything_back_outside(make: Make, place: Path) -> None:
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


def test_one_that_failed_cannot_be_used_again(make: Make) -> None:
    def refuse(path: Path) -> None:
        raise OSError("no space")

    root = make(create_workspace=refuse)
    with pytest.raises(OSError, match="no space"):
        root.__enter__()
    with pytest.raises(RuntimeError, match="one attempt"):
        root.__enter__()


def test_a_second_attempt_after_the_first_finds_everything_as_it_was(make: Make, place: Path) -> None:
    with make():
        config = (place.parent / "config.json").read_bytes()
    with make() as root:
        assert root.lease.holds()
        assert (place.parent / "config.json").read_bytes() == config


class Plug(Exception):
    """What a failing service raises."""


SERVICES = [field.name for field in fields(Services) if field.name not in ("bind_device", "lease_devices")]


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "empty_caches"])
def test_whatever_fails_all_that_was_taken_is_given_back(make: Make, place: Path, name: str) -> None:
    cleared: list[bool] = []

    def fail(*_: Any, **__: Any) -> Any:
        raise Plug(name)

    with pytest.raises(Plug) as error, make(**{name: fail, "empty_caches": lambda: cleared.append(True)}):
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
        raise Plug

    for name in SERVICES:
        with pytest.raises(Plug) as error, make(**{name: fail}):
            pass
        failed.update(getattr(error.value, "__notes__", []))
    assert failed == {f"while setting up: {phase}" for phase, _, _ in PHASES}


def test_a_failing_release_does_not_keep_the_rest(make: Make, place: Path) -> None:
    @contextmanager
    def broken_log(*_: Any) -> Iterator[logging.Logger]:
        yield logging.getLogger(NAME)
        raise Plug

    with pytest.raises(Plug), make(open_log=broken_log):
        pass
    assert holder_of(place) is None


def test_a_failure_inside_gives_everything_back_and_is_not_hidden(make: Make, place: Path) -> None:
    with pytest.raises(ZeroDivisionError), make():
        1 / 0  # noqa: B018
    assert holder_of(place) is None


def test_a_refused_second_owner_changes_nothing_but_its_own_log_lines(make: Make, place: Path) -> None:
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


def test_a_changed_frozen_configuration_is_refused_before_the_lease(make: Make, place: Path) -> None:
    with make():
        pass
    frozen = json.loads((place.parent / "config.json").read_text())
    (place.parent / "config.json").write_text(json.dumps(frozen | {"seed": 12}))
    before = sorted(files(place / "leases"))
    with pytest.raises(ConfigError, match="changed"), make():
        pass
    assert sorted(files(place / "leases")) == before


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


@pytest.mark.parametrize(("determinism", "mode"), [("strict", 2), ("standard", 0)])
def test_determinism_is_as_strict_as_asked(place: Path, determinism: str, mode: int) -> None:
    settings = Experiment.model_validate(SETTINGS | {"training": {"determinism": determinism}})
    run = plan.base(settings)
    place = place.parents[1] / plan.run_digest(run) / place.name
    with RootOrchestrator(settings, run, place, new_attempt(), LAUNCHER):
        assert torch.get_deterministic_debug_mode() == mode
        assert torch.backends.cudnn.benchmark is (mode == 0)


def test_the_device_of_the_last_rank_must_be_there_before_anything_is_taken(place: Path) -> None:
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


def test_concurrent_jobs_get_gpus_of_their_own_unless_one_is_named(
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
            told = [event for event in read_events(events_file(waiting.workspace)) if event["kind"] == "waiting"]
            assert [(event["attempt"], event["reason"].split(" (")[0]) for event in told] == [
                (waiting.attempt, f"waiting for a GPU: 4 held by run {first.workspace.parent.name[:12]}")
            ]
        with on_gpus(place.with_name("3"), "cuda:1") as named:
            assert named.devices == ()
    assert os.environ[gpus.VISIBLE] == "4,6"
    assert not torch.cuda.is_initialized()


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


def test_ranks_compute_with_their_threads_whatever_the_launcher_has_computed(place: Path) -> None:
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


def test_a_killed_owner_is_followed_at_once(make: Make, place: Path, experiment: Experiment) -> None:
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


def test_the_phases_are_those_of_the_documentation() -> None:
    import workflow_lib.orchestrator as module

    assert module.__doc__ is not None
    listed = [line.split()[1] for line in module.__doc__.splitlines() if line[:5].strip().isdigit()]
    assert listed == [name for name, _, _ in PHASES]
    assert [name for name, _, every_rank in PHASES if every_rank] == ["determinism", "runtime", "logging"]


def test_production_services_are_the_real_ones() -> None:
    assert Services().acquire_lease == Lease.acquire
    assert Services().record_config is plan.freeze


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")])
def test_tf32_is_what_the_settings_say_whatever_a_module_of_the_user_switched_on(precision: str, expected: str) -> None:
    """torch has two sets of switches; either can have been used when the user's module was imported."""
    code = f"""
import torch
torch.backends.fp32_precision = "tf32"
torch.backends.cudnn.conv.fp32_precision = "tf32"
from workflow_lib.orchestrator import set_precision
from workflow_lib.runtime.environment import _cuda_switches
_cuda_switches()
set_precision({precision!r})
print(torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision,
      torch.backends.cudnn.rnn.fp32_precision, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected] * 3 + [str(precision == "tf32")] * 2
