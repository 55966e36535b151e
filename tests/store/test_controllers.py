"""The next Snakemake removes the lock of a killed one, and no other lock."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from tests.support.crash import SURVIVED, run_forked
from workflow_lib import processes
from workflow_lib.store import controllers

ENTER = """
import sys
from pathlib import Path
from workflow_lib.store import controllers
print(controllers.enter(Path(sys.argv[1])), flush=True)
if len(sys.argv) > 2:
    (Path(sys.argv[1]) / "locks").mkdir(exist_ok=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Release after the test all that this process holds as if it were a Snakemake."""
    files: list[TextIO] = []
    monkeypatch.setattr(controllers, "_held", files)
    yield
    for file in files:
        file.close()


def start(folder: Path, *, stays: bool = False) -> subprocess.Popen[str]:
    """A process that entered the directory; one that stays locks it, as Snakemake does, and waits."""
    command = [sys.executable, "-c", ENTER, str(folder), *(["stay"] if stays else [])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if stays:
        assert process.stdout
        assert process.stdout.readline() == "[]\n"
        while not (folder / "locks").exists():
            time.sleep(0.01)
    return process


def enter(folder: Path) -> str:
    """Return the messages of a process that comes and goes."""
    return start(folder).communicate(timeout=300)[0].strip()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_the_lock_of_a_killed_snakemake_is_removed_by_the_next(tmp_path: Path) -> None:
    killed = start(tmp_path, stays=True)
    kill(killed)
    assert (tmp_path / "locks").exists()
    assert enter(tmp_path) == str([f"{socket.gethostname()} {killed.pid}"])
    assert not (tmp_path / "locks").exists()
    assert not list((tmp_path / "controllers").iterdir())


def test_the_lock_of_a_running_snakemake_is_kept(tmp_path: Path) -> None:
    living = start(tmp_path, stays=True)
    try:
        assert enter(tmp_path) == "[]"
        assert (tmp_path / "locks").exists()
    finally:
        kill(living)


def test_a_running_snakemake_protects_all_locks(tmp_path: Path) -> None:
    killed, living = start(tmp_path, stays=True), start(tmp_path, stays=True)
    kill(killed)
    try:
        assert enter(tmp_path) == "[]"
        assert (tmp_path / "locks").exists()
    finally:
        kill(living)
    assert enter(tmp_path).count(socket.gethostname()) == 2
    assert not (tmp_path / "locks").exists()


def test_a_lock_of_another_host_is_kept(tmp_path: Path) -> None:
    (tmp_path / "controllers").mkdir()
    (tmp_path / "controllers/0.held").write_text("another-host 1")
    (tmp_path / "locks").mkdir()
    assert enter(tmp_path) == "[]"
    assert (tmp_path / "locks").exists()


def test_a_lock_of_another_container_of_this_machine_is_removed_once_its_snakemake_has_ended(tmp_path: Path) -> None:
    """A container has a host name of its own, and each has another."""
    (tmp_path / "controllers").mkdir()
    held = tmp_path / "controllers/0.held"
    held.write_text(f"container 1 - {processes.boot_id()}")
    (tmp_path / "locks").mkdir()
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert enter(tmp_path) == "[]"
        assert "pid 1 of container, a container of this machine" in controllers.lock_message(tmp_path)
    assert (tmp_path / "locks").exists()
    assert enter(tmp_path) == "['container 1']"
    assert not (tmp_path / "locks").exists()


@pytest.mark.parametrize(("job", "is_removed"), [("7", True), ("8", False), (None, False)])
def test_the_lock_of_a_job_is_removed_by_the_same_job_on_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str | None, is_removed: bool
) -> None:
    (tmp_path / "controllers").mkdir()
    (tmp_path / "controllers/0.held").write_text("another-host 1 7")
    (tmp_path / "locks").mkdir()
    if job is not None:
        monkeypatch.setenv(controllers.DETACHED, job)
    assert enter(tmp_path) == ("['another-host 1 7']" if is_removed else "[]")
    assert (tmp_path / "locks").exists() is not is_removed


def test_the_lock_of_a_snakemake_that_starts_at_the_same_time_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process begins to enter after a kill; before it is known, another one enters and locks."""
    kill(start(tmp_path, stays=True))
    hold, others = controllers._hold, []

    def hold_late(path: Path) -> None:
        command = [sys.executable, "-c", ENTER, str(tmp_path), "stay"]
        others.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert others[0].stdout is not None
        assert others[0].stdout.readline()
        while not (tmp_path / "locks").exists():
            assert others[0].poll() is None
            time.sleep(0.01)
        hold(path)

    monkeypatch.setattr(controllers, "_hold", hold_late)
    try:
        assert controllers.enter(tmp_path) == []
        assert (tmp_path / "locks").exists()
        told = controllers.lock_message(tmp_path)
        assert f"pid {others[0].pid}, since" in told
        assert f"kill -INT -- -{os.getpgid(others[0].pid)})" in told  # its jobs, too
    finally:
        kill(others[0])


def test_the_message_about_a_stale_lock_says_what_to_delete(tmp_path: Path) -> None:
    (tmp_path / "controllers").mkdir()
    (tmp_path / "controllers/0.held").write_text("another-host 1")
    told = controllers.lock_message(tmp_path)
    assert "another-host (pid 1), whose process cannot be checked from this host" in told
    assert f"delete {tmp_path}/controllers" in told


def test_a_snakemake_that_ends_meanwhile_is_not_named(tmp_path: Path) -> None:
    other = start(tmp_path, stays=True)
    (held,) = tmp_path.glob("controllers/*.held")
    opened: list[object] = []

    def remove(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]) == str(held):
            opened.append(arguments)
            if len(opened) == 2:  # first it is locked, then its text is read
                held.unlink()

    def look() -> None:
        sys.addaudithook(remove)
        assert "If no Snakemake runs here" in controllers.lock_message(tmp_path)

    try:
        assert run_forked(look) == SURVIVED
    finally:
        kill(other)


def test_locks_are_kept_on_a_file_system_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    kill(start(tmp_path, stays=True))
    monkeypatch.setattr("fcntl.flock", refuse)
    assert controllers.enter(tmp_path) == []
    assert (tmp_path / "locks").exists()
