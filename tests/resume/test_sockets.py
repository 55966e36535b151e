"""The processes of a training listen only on the loopback interface, or on the address of the job."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

import psutil
import pytest

from tests.resume.conftest import Fresh
from tests.resume.test_ranks import long_with_ranks, running
from tests.support.project import STOPPED, Project
from tests.support.warm import until
from workflow_lib.slurm import nodes

JOB = {"SLURM_JOB_ID": "1", nodes.TOKEN: "a" * 32}


def listening(*pids: int) -> set[str]:
    """Return the addresses on which the processes and their children listen."""
    found = set()
    for process in map(psutil.Process, pids):
        found |= _addresses(process)
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # a command such as git, which has ended meanwhile
                found |= _addresses(child)
    return found


def _addresses(process: psutil.Process) -> set[str]:
    sockets = process.net_connections("inet")
    return {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize(("ranks", "addresses"), [(1, set()), (3, {"127.0.0.1"})])
def test_a_training_on_one_machine_listens_on_loopback_only(fresh: Fresh, ranks: int, addresses: set[str]) -> None:
    run = fresh(long_with_ranks(ranks))
    launcher, processes = running(run)
    try:
        assert len(processes) == ranks
        assert listening(launcher, *processes.values()) == addresses
    finally:
        os.kill(launcher, signal.SIGTERM)
    assert run.warm.wait(launcher) == STOPPED


def of_two_nodes(run: Project, node: int, plant: str | None = None, **changes: str) -> int:
    """Start the launcher of one of two nodes, as ``srun`` does, and return its process id."""
    return run.warm.start(run.order(plant=plant, SLURM_NODEID=str(node), **{**JOB, **changes}))


@pytest.mark.parametrize("node", [0, 1])
def test_a_launcher_that_waits_for_another_node_stops_when_asked(fresh: Fresh, reference: Fresh, node: int) -> None:
    """The first launcher listens on the job's address only; a later launcher finds no listener there."""
    run, place = fresh(with_two_nodes()), {"SLURM_LAUNCH_NODE_IPADDR": "127.0.0.7", nodes.PORT: str(nodes._free_port())}
    pid = of_two_nodes(run, node, **place)
    if node == 0:
        until(lambda: listening(pid), "the launcher to listen")
        assert listening(pid) == {"127.0.0.7"}
    else:
        until(lambda: psutil.Process(pid).net_connections("inet") or is_in_rendezvous(run), "the launcher to connect")
    os.kill(pid, signal.SIGTERM)
    assert run.warm.wait(pid) == STOPPED
    assert "stopped while waiting for the launchers of the other nodes" in run.log


def with_two_nodes() -> dict[str, Any]:
    return {"runtime": {"nproc": 1, "nodes": 2, "device": "cpu"}}


def is_in_rendezvous(run: Project) -> bool:
    """Return True once the launcher has its scratch folder, which it makes just before the rendezvous."""
    return any(run.folder.glob("work/runs/*/*/attempts/*/"))
