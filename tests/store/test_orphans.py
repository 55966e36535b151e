import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from workflow_lib.store import attempts, layout
from workflow_lib.store.attempts import RankProcess
from workflow_lib.store.lease import is_alive
from workflow_lib.store.orphans import end_orphans, find_orphans

LAUNCHER = """
import os, sys, time
from pathlib import Path
from workflow_lib.store import attempts
place = Path(sys.argv[1])
child = os.fork()
if child == 0:
    os.setsid()
    time.sleep(600)
attempts.begin(place, "a" * 32)
attempts.record_ranks(place, "a" * 32, [attempts.RankProcess.of(0, child)])
print(child, flush=True)
time.sleep(600)
"""
Start = Callable[..., tuple[subprocess.Popen[str], RankProcess]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a launcher, which forks a rank into its own session and records it."""
    started: list[tuple[subprocess.Popen[str], RankProcess]] = []

    def start(**environ: str) -> tuple[subprocess.Popen[str], RankProcess]:
        command = [sys.executable, "-c", LAUNCHER, str(tmp_path)]
        launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environ)
        assert launcher.stdout is not None
        rank = RankProcess.of(0, int(launcher.stdout.readline()))
        started.append((launcher, rank))
        return launcher, rank

    yield start
    for launcher, rank in started:
        launcher.kill()
        launcher.wait()
        assert launcher.stdout is not None
        launcher.stdout.close()  # the rank has the other end open, so reading to the end would block
        if is_alive(rank.pid, rank.start_time):
            os.kill(rank.pid, signal.SIGKILL)


def kill(launcher: subprocess.Popen[str]) -> None:
    launcher.kill()
    launcher.wait()


def test_a_rank_without_its_launcher_is_killed(start: Start, tmp_path: Path) -> None:
    launcher, rank = start()
    kill(launcher)
    assert is_alive(rank.pid, rank.start_time)
    (orphan,) = end_orphans(tmp_path)
    assert orphan.process == rank
    assert not is_alive(rank.pid, rank.start_time)
    assert end_orphans(tmp_path) == ()


def test_the_ranks_of_a_living_launcher_are_left_alone(start: Start, tmp_path: Path) -> None:
    _, rank = start()
    assert end_orphans(tmp_path) == ()
    assert is_alive(rank.pid, rank.start_time)


def test_the_orphans_of_another_workspace_are_left_alone(start: Start, tmp_path: Path) -> None:
    launcher, rank = start()
    kill(launcher)
    attempts.create(tmp_path / "other")
    assert end_orphans(tmp_path / "other") == ()
    assert is_alive(rank.pid, rank.start_time)


def edit(place: Path, **changes: object) -> None:
    path = layout.attempts_dir(place) / f"{'a' * 32}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_later_process_with_the_number_of_an_orphan_is_left_alone(start: Start, tmp_path: Path) -> None:
    launcher, rank = start()
    kill(launcher)
    edit(tmp_path, ranks=[{"rank": 0, "pid": rank.pid, "start_time": rank.start_time - 60}])
    assert find_orphans(tmp_path) == ()
    assert end_orphans(tmp_path) == ()
    assert is_alive(rank.pid, rank.start_time)


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"boot": "an earlier boot"}, {"machine": "a container"}])
def test_a_record_of_another_host_boot_or_container_kills_nothing(
    start: Start, tmp_path: Path, other: dict[str, str]
) -> None:
    launcher, rank = start()
    kill(launcher)
    edit(tmp_path, **other)
    assert end_orphans(tmp_path) == ()
    assert is_alive(rank.pid, rank.start_time)


@pytest.mark.parametrize("scheduler", ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID"])
@pytest.mark.parametrize(("theirs", "ours", "ends"), [("7", "7", True), ("7", "8", False), ("7", None, False)])
def test_only_orphans_of_the_same_job_are_killed(
    start: Start,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    scheduler: str,
    theirs: str,
    ours: str | None,
    ends: bool,
) -> None:
    launcher, rank = start(**{scheduler: theirs})
    kill(launcher)
    ended = end_orphans(tmp_path, environ={scheduler: ours} if ours else {})
    assert bool(ended) is ends
    assert is_alive(rank.pid, rank.start_time) is not ends
    assert f"pid {rank.pid}" in caplog.text


def test_a_suspended_orphan_is_killed_too(start: Start, tmp_path: Path) -> None:
    launcher, rank = start()
    kill(launcher)
    os.kill(rank.pid, signal.SIGSTOP)
    deadline = time.monotonic() + 300
    while psutil.Process(rank.pid).status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(find_orphans(tmp_path)) == 1
    assert len(end_orphans(tmp_path)) == 1
    assert not is_alive(rank.pid, rank.start_time)


DYING = """
import ctypes, os, sys, time
from workflow_lib.store import orphans
if sys.argv[1] == "a Mac":
    sys.platform = "darwin"
    ctypes.CDLL = lambda *_, **__: object()  # a C library without prctl
    orphans.LOOK_S = 0.01
launcher = os.getpid()
child = os.fork()
if child == 0:
    os.setsid()
    try:
        orphans.exit_with_parent(launcher)
        print(os.getpid(), flush=True)
    except Exception as error:
        print(repr(error), flush=True)
    time.sleep(600)
time.sleep(600)
"""


@pytest.mark.parametrize("system", ["Linux", "a Mac"])
def test_a_rank_ends_with_its_launcher(system: str) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", DYING, system], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    rank = int(launcher.stdout.readline())
    process = psutil.Process(rank)
    kill(launcher)
    launcher.stdout.close()
    try:
        deadline = time.monotonic() + 60
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the rank outlived its launcher"
            time.sleep(0.01)
    except psutil.NoSuchProcess:
        pass
    finally:
        if process.is_running():
            process.kill()
