"""A workspace has at most one owner; the contenders in these tests are real processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.crash import SURVIVED, fork, run_forked, wait
from tests.support.leases import forked, hold, poll, pretend, take, until, until_given_up
from workflow_lib.errors import Stopped, WorkspaceBusy
from workflow_lib.store import lease as module
from workflow_lib.store.lease import Holder, current, holder_of, last_seen

__all__ = ["forked"]

BUSY = 7


def test_a_fresh_workspace_is_taken_at_once(tmp_path: Path) -> None:
    with take(tmp_path) as lease:
        assert lease.holds()
        assert holder_of(tmp_path) == Holder.this_process("a")


def test_a_released_lease_is_taken_at_once_and_nothing_is_removed(tmp_path: Path) -> None:
    take(tmp_path, "a").release()
    before = {path: path.read_bytes() for path in (tmp_path / "leases").iterdir()}
    assert holder_of(tmp_path) is None
    with take(tmp_path, "b") as lease:
        assert lease.number == 2
        assert {path: path.read_bytes() for path in before} == before


def test_a_live_holder_is_named_to_the_contender(tmp_path: Path, forked: Callable[..., int]) -> None:
    pid = forked(hold(tmp_path, tmp_path / "ready"))
    until((tmp_path / "ready").exists)
    with pytest.raises(WorkspaceBusy, match=rf"attempt holder .*host {socket.gethostname()}, pid {pid}\)"):
        take(tmp_path)
    assert current(tmp_path / "leases")[0] == 1


def test_a_holder_stays_alive_when_the_clock_is_set(
    tmp_path: Path, forked: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    forked(hold(tmp_path, tmp_path / "ready"))
    until((tmp_path / "ready").exists)
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 0.0)  # what Linux tells moves with the time of day
    with pytest.raises(WorkspaceBusy):
        take(tmp_path)


def test_of_many_contenders_one_wins(tmp_path: Path, forked: Callable[..., int]) -> None:
    start = tmp_path / "start"

    def contend() -> None:
        until(start.exists)
        try:
            take(tmp_path)
        except WorkspaceBusy:
            os._exit(BUSY)
        (tmp_path / f"won-{os.getpid()}").touch()
        signal.pause()

    pids = [forked(contend) for _ in range(8)]
    start.touch()
    ended: list[int] = []

    def others_have_left() -> bool:
        ended.extend(code for code in map(poll, pids) if code is not None)
        return len(ended) == 7

    until(others_have_left)
    assert ended == [BUSY] * 7
    assert len(list(tmp_path.glob("won-*"))) == 1
    assert current(tmp_path / "leases")[0] == 1


def test_a_contender_waits_for_the_holder_to_release(tmp_path: Path, forked: Callable[..., int]) -> None:
    def work() -> None:
        lease = take(tmp_path, "holder")
        (tmp_path / "ready").touch()
        until((tmp_path / "let go").exists)
        lease.release()

    forked(work)
    until((tmp_path / "ready").exists)
    waiter = fork(lambda: take(tmp_path, "waiter", timeout_s=3600, wait_s=3600))
    with pytest.raises(TimeoutError):
        until(lambda: poll(waiter) is not None, timeout_s=0.5)
    (tmp_path / "let go").touch()
    assert wait(waiter) == SURVIVED


def test_a_dead_holder_is_taken_over_at_once(tmp_path: Path, forked: Callable[..., int]) -> None:
    pid = forked(hold(tmp_path, tmp_path / "ready"))
    until((tmp_path / "ready").exists)
    os.kill(pid, signal.SIGKILL)
    until(lambda: holder_of(tmp_path) is None)
    begun = time.monotonic()
    with take(tmp_path, timeout_s=3600):
        assert time.monotonic() - begun < 300


def test_a_holder_whose_pid_was_reused_is_dead(tmp_path: Path) -> None:
    take(tmp_path)
    pretend(tmp_path, start_time=1.0)
    with take(tmp_path, "b", timeout_s=3600) as lease:
        assert lease.number == 2


def test_a_holder_from_before_a_reboot_is_dead(tmp_path: Path) -> None:
    take(tmp_path)
    pretend(tmp_path, boot="another")
    with take(tmp_path, "b", timeout_s=3600) as lease:
        assert lease.number == 2


def test_a_suspended_holder_is_taken_over_after_the_timeout_and_notices_it(
    tmp_path: Path, forked: Callable[..., int]
) -> None:
    def work() -> None:
        lease = take(tmp_path, "sleeper", timeout_s=0.6)
        (tmp_path / "ready").touch()
        until((tmp_path / "wake").exists)
        os._exit(BUSY if not lease.holds() else SURVIVED)

    pid = forked(work)
    until((tmp_path / "ready").exists)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    begun = time.monotonic()
    with take(tmp_path, "successor", timeout_s=0.6, wait_s=0) as lease:
        assert time.monotonic() - begun >= 0.6
        (tmp_path / "wake").touch()
        os.kill(pid, signal.SIGCONT)
        assert wait(pid) == BUSY
        assert lease.holds()
        assert not (tmp_path / "leases" / "000002.released").exists()


def test_a_predecessor_does_not_release_its_successor(tmp_path: Path) -> None:
    late = take(tmp_path, "late")
    pretend(tmp_path, boot="another")
    with take(tmp_path, "successor"):
        late.release()
        assert not late.holds()
        with pytest.raises(WorkspaceBusy, match="attempt successo"):
            take(tmp_path, "third")


def test_a_forked_child_does_not_release_its_parents_lease(tmp_path: Path) -> None:
    with take(tmp_path) as lease:
        assert run_forked(lease.release) == SURVIVED
        assert holder_of(tmp_path) is not None


def test_only_the_heartbeat_of_a_holder_on_another_host_counts(tmp_path: Path) -> None:
    """Its process number is not valid here: it is alive while its heartbeat changes."""
    beating = take(tmp_path, "elsewhere", timeout_s=0.6)
    pretend(tmp_path, host="elsewhere", pid=1)
    with pytest.raises(WorkspaceBusy, match="host elsewhere"):
        take(tmp_path, "b", timeout_s=3600)
    beating._ended.set()
    beating._thread.join()
    begun = time.monotonic()
    with take(tmp_path, "b", timeout_s=0.6) as lease:
        assert time.monotonic() - begun >= 0.6
        assert lease.number == 2


def test_a_shorter_timeout_of_a_contender_does_not_count(tmp_path: Path) -> None:
    """The heartbeat interval of the owner, on another host, is longer than the timeout of the contender."""
    owner = take(tmp_path, "elsewhere", timeout_s=3600)
    pretend(tmp_path, host="elsewhere", pid=1)
    with pytest.raises(Stopped):
        take(tmp_path, "b", timeout_s=0.1, wait_s=3600, must_stop=until_given_up(1.5))
    assert owner.holds()
    owner.release()


def test_an_owner_that_runs_on_this_host_is_never_taken_over(tmp_path: Path, forked: Callable[..., int]) -> None:
    """Not even without a heartbeat, as when the disk rejects writes."""

    def work() -> None:
        lease = take(tmp_path, "silent", timeout_s=0.1)
        lease._ended.set()
        lease._thread.join()
        (tmp_path / "ready").touch()
        signal.pause()

    forked(work)
    until((tmp_path / "ready").exists)
    with pytest.raises(Stopped):
        take(tmp_path, "b", timeout_s=0.1, wait_s=3600, must_stop=until_given_up(1.5))
    assert current(tmp_path / "leases")[0] == 1


def test_an_owner_with_a_long_timeout_still_has_frequent_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_BEAT_S", 0.05)
    with take(tmp_path, "elsewhere", timeout_s=3600):
        pretend(tmp_path, host="elsewhere", pid=1)
        with pytest.raises(WorkspaceBusy):
            take(tmp_path, "b", timeout_s=3600, must_stop=until_given_up(300))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has PID namespaces")
def test_an_owner_outside_of_a_container_is_alive_inside(tmp_path: Path) -> None:
    """The container has the name of the host, but its own PID namespace."""
    code = f"""
from pathlib import Path
from workflow_lib.errors import WorkspaceBusy
from workflow_lib.store.lease import Lease, holder_of
assert holder_of(Path({str(tmp_path)!r})) is not None
try:
    Lease.acquire(Path({str(tmp_path)!r}), "inside", timeout_s=3600)
except WorkspaceBusy as error:
    print(error)
"""
    inside = [
        "unshare",
        *([] if os.getuid() == 0 else ["--user", "--map-root-user"]),
        "--pid",
        "--fork",
        "--mount-proc",
    ]
    with take(tmp_path, "outside", timeout_s=0.6) as owner:
        shown = subprocess.run([*inside, sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"attempt outside (host {socket.gethostname()}, pid {os.getpid()}" in shown.stdout, shown.stderr
        assert owner.holds()


def test_clocks_of_hosts_are_not_compared(tmp_path: Path) -> None:
    """A heartbeat from the future or the distant past counts as long as it changes."""
    beating = take(tmp_path, "elsewhere", timeout_s=3600)
    pretend(tmp_path, host="elsewhere")
    beat = tmp_path / "leases" / "000001.beat"
    os.utime(beat, (4e9, 4e9))

    def contend() -> None:
        with pytest.raises(WorkspaceBusy):
            take(tmp_path, "b", timeout_s=600)

    pid = fork(contend)
    with pytest.raises(TimeoutError):
        until(lambda: poll(pid) is not None, timeout_s=0.5)
    os.utime(beat, (1e9, 1e9))
    assert wait(pid) == SURVIVED
    beating.release()


@pytest.mark.parametrize(
    ("answer", "job", "is_taken"),
    [
        ("", "1", True),
        ("1 PENDING", "1", True),
        ("1 RUNNING", "1", False),
        ("1 COMPLETING", "1", False),
        ("3 RUNNING", "1", True),  # another task of the array whose number it has
        ("", "PBS 1", False),  # SLURM knows nothing of it
    ],
)
def test_a_holder_whose_job_is_not_running_is_taken_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, job: str, is_taken: bool
) -> None:
    """A program on the path stands in for `squeue`."""
    program = tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho {answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "2")
    module._job_is_gone.cache_clear()
    first = take(tmp_path, timeout_s=0.6)
    pretend(tmp_path, host="elsewhere", job=job)
    if is_taken:
        take(tmp_path, "b", timeout_s=3600).release()
    else:
        with pytest.raises(WorkspaceBusy, match=f"job {job}"):
            take(tmp_path, "b", timeout_s=3600)
    first.release()


@pytest.mark.parametrize(("place", "doing"), [("data/a", "prepared or removed"), ("runs/a/b", "trained")])
def test_the_message_contains_the_activity_of_the_owner(tmp_path: Path, place: str, doing: str) -> None:
    with take(tmp_path / place), pytest.raises(WorkspaceBusy, match=f"{place} is being {doing} by attempt"):
        take(tmp_path / place, "b", timeout_s=3600)


def test_a_waiting_contender_stops_on_request(tmp_path: Path) -> None:
    with take(tmp_path), pytest.raises(Stopped, match="nothing was changed"):
        take(tmp_path, "b", wait_s=3600, must_stop=lambda: True)


@pytest.mark.parametrize("look", [last_seen, holder_of, take], ids=["last_seen", "holder_of", "acquire"])
def test_a_workspace_that_is_removed_while_its_lease_is_read_is_free(
    tmp_path: Path, look: Callable[[Path], object]
) -> None:
    workspace = tmp_path / "workspace"
    take(workspace).release()
    (workspace / "leases" / "000001.released").unlink()
    pretend(workspace, host="another")
    lease = workspace / "leases" / "000001.json"

    def remove(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]) == str(lease) and workspace.exists():
            shutil.rmtree(workspace)

    def read() -> None:
        sys.addaudithook(remove)
        found = look(workspace)
        assert found is None if look is not take else found.number == 1

    assert run_forked(read) == SURVIVED
