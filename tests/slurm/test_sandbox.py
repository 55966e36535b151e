"""The sandbox starts and stops completely, and touches nothing that is not its own."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.slurm.conftest import WAIT_S, wait_until
from tests.support.repository import ROOT

SANDBOX = ROOT / "scripts" / "slurm-sandbox"
DAEMONS = 6


def call(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/slurm-sandbox with its files in the folder."""
    inherited = {key: value for key, value in os.environ.items() if key != "SLURM_CONF"}
    command = [str(SANDBOX), "--dir", str(folder), *words]
    return subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, check=False, timeout=WAIT_S
    )


def processes_of(folder: Path) -> set[int]:
    """Return the pids of the daemons and jobs of the cluster in the folder."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_CONF") == f"{folder}/slurm.conf":
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, as sockets need it; a cluster in it is stopped after the test."""
    with tempfile.TemporaryDirectory(prefix="sandbox-", dir="/tmp") as name:
        yield Path(name)
        call(Path(name), "stop")


def test_a_sandbox_listens_on_loopback_only(folder: Path) -> None:
    assert call(folder, "start").returncode == 0
    command = ["sh", "-c", f". {folder}/env.sh; exec srun --nodes 2 --ntasks 2 sleep 1000"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as step:
        try:
            wait_until(lambda: len([name for name in names_of(folder) if name == "sleep"]) == 2)
            found = listening(folder)
        finally:
            step.terminate()
    assert {"slurmctld", "slurmd", "srun"} <= {name for name, _ in found}
    assert {address for _, address in found} == {"127.0.0.1"}


def names_of(folder: Path) -> list[str]:
    """Return the names of the sandbox's processes."""
    found = []
    for pid in processes_of(folder):
        with suppress(psutil.Error):
            found.append(psutil.Process(pid).name())
    return found


def listening(folder: Path) -> set[tuple[str, str]]:
    """Return process name and address of every listening socket of the sandbox."""
    found = set()
    for pid in processes_of(folder):
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            sockets = process.net_connections("inet")
            found |= {(process.name(), it.laddr.ip) for it in sockets if it.status == psutil.CONN_LISTEN}
    return found


def test_a_started_sandbox_is_complete_and_a_stopped_one_leaves_no_process(folder: Path) -> None:
    assert call(folder, "status").returncode == 3
    assert call(folder, "start").returncode == 0
    assert call(folder, "status").returncode == 0
    submit = f". {folder}/env.sh; sbatch --output=/dev/null --wrap 'sleep 1000'; srun --partition gpu --gpus 2 env"
    shown = subprocess.run(["sh", "-c", submit], capture_output=True, text=True, check=True, timeout=WAIT_S).stdout
    assert "CUDA_VISIBLE_DEVICES=0,1\n" in shown
    assert len(processes_of(folder)) > DAEMONS - 1
    assert call(folder, "stop").returncode == 0
    assert not processes_of(folder)
    assert call(folder, "status").returncode == 3


def test_a_second_start_changes_nothing(folder: Path) -> None:
    call(folder, "start")
    first = processes_of(folder)
    assert call(folder, "start").returncode == 0
    assert processes_of(folder) == first


def test_run_starts_a_cluster_and_stops_it_after_the_command(folder: Path) -> None:
    done = call(folder, "run", "sh", "-c", "sinfo --noheader --format %D; exit 7")
    assert done.returncode == 7
    assert "4\n" in done.stdout
    assert not processes_of(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run_stops_the_cluster_after_an_interruption_of_both(folder: Path, number: int) -> None:
    ready = folder / "ready"
    command = [str(SANDBOX), "--dir", str(folder), "run", "sh", "-c", f"touch {ready}; sleep 1000"]
    inherited = {key: value for key, value in os.environ.items() if key != "SLURM_CONF"}
    with subprocess.Popen(command, env=inherited, start_new_session=True) as process:
        wait_until(ready.exists)
        os.killpg(process.pid, number)
        assert process.wait(WAIT_S) == 128 + number
    assert not processes_of(folder)


def test_two_sandboxes_are_independent(cluster: Any, folder: Path) -> None:
    others = processes_of(cluster.folder)
    assert call(folder, "start").returncode == 0
    assert processes_of(folder).isdisjoint(others)
    assert call(folder, "stop").returncode == 0
    assert "n1" in cluster.ask("sinfo", "--noheader", "--Node")


def test_no_other_sandbox_takes_the_ports_of_a_dead_node(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="sandbox-", dir="/tmp") as other:
        call(folder, "start")
        call(folder, "down", "n2")
        call(folder, "down", "controller")
        try:
            assert call(Path(other), "start").returncode == 0
            assert call(folder, "up", "controller").returncode == 0
            assert call(folder, "up", "n2").returncode == 0
        finally:
            call(Path(other), "stop")


def test_sandboxes_that_start_at_the_same_time_are_independent(folder: Path) -> None:
    folders = [folder / "a", folder / "b"]
    try:
        with ThreadPoolExecutor() as pool:
            assert [done.returncode for done in pool.map(lambda place: call(place, "start"), folders)] == [0, 0]
        assert [call(place, "status").returncode for place in folders] == [0, 0]
    finally:
        for place in folders:
            call(place, "stop")


def test_the_sandbox_does_not_start_if_another_slurm_is_configured(cluster: Any, folder: Path) -> None:
    other = f"{cluster.folder}/slurm.conf"
    refused = call(folder, "start", SLURM_CONF=other)
    assert refused.returncode == 1
    assert f"SLURM_CONF names another cluster ({other})" in refused.stderr
    assert not processes_of(folder)


def test_a_process_that_reuses_a_recorded_pid_is_not_ended(folder: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        (folder / "processes.json").write_text(f'{{"n1": [{stranger.pid}, 1]}}')
        assert call(folder, "stop").returncode == 0
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize("name", ["has space", "x" * 70])
def test_a_folder_that_slurm_cannot_use_is_rejected_with_the_reason(folder: Path, name: str) -> None:
    refused = call(folder / name, "start")
    assert refused.returncode == 1
    assert "--dir" in refused.stderr
