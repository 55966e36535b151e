"""A GPU has one holder; waiting processes are served in order, and killed or suspended ones delay nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.gpu_leases import HOLDER, Waits, lease, tickets
from tests.support.warm import until
from workflow_lib.errors import ConfigError, Stopped
from workflow_lib.runtime import device_lease, gpus


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "gpus"


def test_two_jobs_never_share_a_device(folder: Path) -> None:
    ids = ("0", "1", "2")
    with lease(folder, 1, ids) as first, lease(folder, 2, ids) as second:
        assert (first, second) == (("0",), ("1", "2"))
        with pytest.raises(Waits), lease(folder, 1, ids):
            pass
    with lease(folder, 3, ids) as all_of_them:
        assert all_of_them == ids


def test_the_holder_of_a_device_is_named(folder: Path) -> None:
    with lease(folder, 1):
        expected = rf"waiting for 2 GPUs: 0 held by run abc \(pid {os.getpid()}, \S+ on \S+\)$"
        with pytest.raises(Waits, match=expected), lease(folder, 2):
            pass


def test_a_job_that_cannot_have_all_takes_none(folder: Path) -> None:
    with lease(folder, 1):
        with pytest.raises(Waits), lease(folder, 2):
            pass
        with lease(folder, 1) as other:
            assert other == ("1",)


def test_devices_are_free_again_after_a_failure_and_no_ticket_stays(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), lease(folder, 1):
        1 / 0  # noqa: B018
    assert tickets(folder) == []
    with lease(folder, 1) as again:
        assert again == ("0",)


def test_the_device_of_a_killed_job_is_free_once_its_last_rank_is_gone(folder: Path) -> None:
    job = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    rank = int(job.stdout.readline())
    try:
        with lease(folder, 1) as other:
            assert other == ("1",)
        job.kill()
        job.wait()
        with pytest.raises(Waits, match="0 held by run xyz"), lease(folder, 2):
            pass
    finally:
        os.kill(rank, signal.SIGKILL)
        job.kill()
        job.wait()
        job.stdout.close()
    with lease(folder, 2, report=lambda reason: None) as both:
        assert both == ("0", "1")
    assert tickets(folder) == []


class Waiting:
    """A thread that waits for a lease."""

    def __init__(self, folder: Path, count: int, ids: tuple[str, ...] = ("0", "1")) -> None:
        self.reasons: list[str] = []
        self.got: list[tuple[str, ...]] = []
        self.done = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(folder, count, ids), daemon=True)
        self._thread.start()

    def _run(self, folder: Path, count: int, ids: tuple[str, ...]) -> None:
        with (
            suppress(Stopped),
            lease(folder, count, ids, report=self.reasons.append, must_stop=self._stop.is_set) as got,
        ):
            self.got.append(got)
            self.done.wait()

    def end(self) -> None:
        self._stop.set()
        self.done.set()
        self._thread.join()


def test_no_job_overtakes_one_that_waits_for_more_devices(folder: Path) -> None:
    """A job that needs both GPUs gets them, although jobs for one GPU keep arriving."""
    with ExitStack() as first:
        first.enter_context(lease(folder, 1))
        large = Waiting(folder, 2)
        try:
            until(lambda: large.reasons, "the large job waits")
            with pytest.raises(Waits, match="1 reserved for run abc"), lease(folder, 1):
                pass
            small = Waiting(folder, 1)
            until(lambda: small.reasons, "the small job waits")
            first.close()
            until(lambda: large.got, "the large job has its GPUs")
            assert large.got == [("0", "1")]
            assert small.got == []
            large.end()
            until(lambda: small.got, "the small job has its GPU")
            small.end()
        finally:
            large.end()


def test_a_waiting_job_keeps_only_what_it_can_use(folder: Path) -> None:
    with lease(folder, 1, ("0",)):
        other = Waiting(folder, 1, ("0",))
        try:
            until(lambda: other.reasons, "it waits")
            with lease(folder, 1, ("0", "1")) as got:
                assert got == ("1",)
        finally:
            other.end()


def test_a_waiting_job_that_is_suspended_delays_no_other(folder: Path) -> None:
    with lease(folder, 1, ("0",)) as _, ExitStack() as more:
        waits = subprocess.Popen(
            [sys.executable, "-c", HOLDER.replace("lease_devices(1", "lease_devices(2"), str(folder)]
        )
        more.callback(waits.wait)
        more.callback(waits.kill)
        until(lambda: len(tickets(folder)) == 2, "it waits")
        waits.send_signal(signal.SIGSTOP)
        until(lambda: Path(f"/proc/{waits.pid}/stat").read_text().split()[2] == "T", "it is suspended")
        ticket = folder / tickets(folder)[1]
        with pytest.raises(Waits, match="1 reserved for run xyz"), lease(folder, 1):
            pass
        long_ago = time.time() - 2 * device_lease.SILENT_S
        os.utime(ticket, (long_ago, long_ago))
        with lease(folder, 1) as got:
            assert got == ("1",)


def test_the_reason_of_a_wait_is_reported_only_when_it_changes(folder: Path) -> None:
    with ExitStack() as first, lease(folder, 1, ("1",)):
        first.enter_context(lease(folder, 1, ("0",)))
        job = Waiting(folder, 2)
        try:
            until(lambda: job.reasons, "it waits")
            first.close()
            until(lambda: len(job.reasons) == 2, "something changed")
            assert "0 held" not in job.reasons[1]
            assert "1 held by" in job.reasons[1]
        finally:
            job.end()
        assert len(job.reasons) == 2


def test_a_waiting_job_stops_when_asked_and_leaves_no_ticket(folder: Path) -> None:
    with lease(folder, 2):
        with pytest.raises(Stopped, match="waiting for a GPU") as stopped:
            with lease(folder, 1, report=lambda reason: None, must_stop=lambda: "SIGTERM"):
                pass
        assert stopped.value.exit_code == 75
        assert len(tickets(folder)) == 1


BUSY = """
import sys
from pathlib import Path
from workflow_lib.runtime import device_lease
device_lease.POLL_S = 0.0
with device_lease.lease_devices(2, "run busy", ("0", "1"), folder=Path(sys.argv[1])):
    pass
"""


def test_a_process_suspended_at_any_moment_delays_no_other(folder: Path) -> None:
    """The process polls without a pause, and is suspended at random moments."""
    with lease(folder, 1, ("0",)) as _, ExitStack() as more:
        busy = subprocess.Popen([sys.executable, "-c", BUSY, str(folder)])
        more.callback(busy.wait)
        more.callback(busy.kill)
        until(lambda: len(tickets(folder)) == 2, "it waits")
        ticket = folder / tickets(folder)[1]
        for _ in range(30):
            busy.send_signal(signal.SIGSTOP)
            until(lambda: Path(f"/proc/{busy.pid}/stat").read_text().split()[2] == "T", "it is suspended")
            long_ago = time.time() - 2 * device_lease.SILENT_S
            os.utime(ticket, (long_ago, long_ago))
            with lease(folder, 1) as got:
                assert got == ("1",)
            busy.send_signal(signal.SIGCONT)


def test_processes_that_come_and_go_at_once_never_hold_the_same_device(folder: Path) -> None:
    """Each holder of a device creates a file that must be new, while lock files come and go all the time."""
    code = BUSY.replace('2, "run busy"', '1, "run busy"').replace("with ", "for _ in range(40):\n  with ")
    code = code.replace(":\n    pass", " as (id,):\n    mark = Path(sys.argv[1] + id); mark.mkdir(); mark.rmdir()")
    busy = [subprocess.Popen([sys.executable, "-c", code, str(folder)], stderr=subprocess.PIPE) for _ in range(6)]
    try:
        errors = [process.communicate(timeout=600)[1].decode() for process in busy]
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert [process.returncode for process in busy] == [0] * 6, "\n".join(errors)
    assert list(folder.iterdir()) == []


def remove_tickets(folder: Path) -> None:
    """Remove all tickets."""
    for name in tickets(folder):
        (folder / name).unlink()


def test_a_device_has_one_holder_even_if_its_ticket_is_lost(folder: Path) -> None:
    with lease(folder, 1, ("0",)):
        remove_tickets(folder)
        with pytest.raises(Waits, match="another process is about to take"), lease(folder, 1, ("0",)):
            pass


def test_a_lock_on_a_removed_file_is_not_a_lease(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes the unlocked file after it was opened here, and before it is locked."""
    lock, removed = device_lease._lock, []

    def lock_late(file: int, kind: int) -> bool:
        if kind == device_lease.fcntl.LOCK_EX and not removed:
            removed.append((folder / "0.lock").unlink())
        return lock(file, kind)

    monkeypatch.setattr(device_lease, "_lock", lock_late)
    with lease(folder, 1, ("0",), report=lambda reason: None) as got:
        assert got == ("0",)
        assert removed
        remove_tickets(folder)
        with pytest.raises(Waits), lease(folder, 1, ("0",)):
            pass


def test_a_gpu_has_one_holder_under_all_its_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "installed", lambda: [gpus.Gpu("GPU-aa"), gpus.Gpu("GPU-bb")])
    by_uuid = {"CUDA_VISIBLE_DEVICES": "GPU-bb"}
    with lease(folder, 1, None, environ=by_uuid) as first, lease(folder, 1, None, environ={}) as second:
        assert (first, second) == (("GPU-bb",), ("0",))
        with pytest.raises(Waits, match="1 held by"), lease(folder, 1, None, environ={"CUDA_VISIBLE_DEVICES": "1"}):
            pass


def test_processes_of_a_slurm_job_divide_its_devices(folder: Path) -> None:
    environ = {"SLURM_JOB_ID": "5", "CUDA_VISIBLE_DEVICES": "3,GPU-8f2"}
    with lease(folder, 1, None, environ=environ) as first, lease(folder, 1, None, environ=environ) as second:
        assert (first, second) == (("3",), ("GPU-8f2",))
        with lease(folder, 2, None, environ={**environ, "SLURM_JOB_ID": "6"}) as other:
            assert other == ("3", "GPU-8f2")


def test_more_devices_than_exist_are_a_configuration_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="2 GPUs are needed; there are 0"), lease(folder, 2, ("0",)):
        pass
    assert not folder.exists()
