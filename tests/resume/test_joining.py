"""A launcher or a rank that cannot join the others ends in time, obeys SIGTERM, and reports the reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.resume.conftest import Fresh
from tests.resume.test_sockets import is_in_rendezvous, of_two_nodes
from tests.support.cases import with_ranks
from tests.support.project import FAILED, FINISHED, STOPPED
from tests.support.warm import ROOT, members, until
from workflow_lib.slurm import nodes

NO_NAMES = """
set -e
for file in hosts resolv.conf nsswitch.conf; do
  mount --bind "$1" /etc/$file
done
! getent hosts localhost
shift
exec "$@"
"""


@pytest.mark.skipif(os.getuid() != 0 and "CI" not in os.environ, reason="needs a mount namespace of its own")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_training_needs_no_name_resolution(fresh: Fresh, tmp_path: Path, ranks: int) -> None:
    run, empty = fresh(with_ranks(ranks)), tmp_path / "empty"
    empty.touch()
    verb = [sys.executable, "-m", "workflow_lib", *run.order().arguments]
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", NO_NAMES, "bash", str(empty), *verb],
        cwd=run.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == FINISHED, done.stderr
    assert run.sealed()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_training_with_too_few_descriptors_fails_with_the_reason(fresh: Fresh, ranks: int) -> None:
    """Each number fails at another place: in the launcher when it starts a rank, or in a rank when it connects."""
    codes = []
    for spare in range(2, 20, 1 if ranks > 1 else 3):
        run = fresh({"runtime": {"nproc": ranks, "hang_timeout_s": 5}})
        order = run.order(plant="tests.plugins.plants:few_descriptors", SPARE_DESCRIPTORS=str(spare))
        pid = run.warm.start(order)
        codes.append(run.warm.wait(pid, timeout_s=120))
        assert codes[-1] in (FINISHED, FAILED), f"{spare} descriptors:\n{run.log}"
        assert codes[-1] == FINISHED or "Raise the limit of open files" in run.log.splitlines()[-1], run.log
        until(lambda group=pid: not members(group), "all ranks to end")
    assert codes[0] == FAILED
    assert ranks > 1 or codes[-1] == FINISHED


def test_sigterm_ends_ranks_that_wait_for_each_other(fresh: Fresh) -> None:
    run = fresh(with_ranks(2))
    pid = run.warm.start(run.order(plant="tests.plugins.plants:rank_one_never_joins"))
    until(lambda: len(members(pid)) == 3, "both ranks to be there")
    os.kill(pid, signal.SIGTERM)
    began = time.monotonic()
    assert run.warm.wait(pid) == STOPPED, run.log
    assert time.monotonic() - began < 50  # hang_timeout_s is 60
    assert "stopped by SIGTERM before the first step" in run.log
    until(lambda: not members(pid), "the ranks to end")


def test_the_hang_timeout_ends_ranks_that_wait_for_each_other(fresh: Fresh) -> None:
    run = fresh({"runtime": {"nproc": 2, "hang_timeout_s": 3}})
    assert run.attempt(plant="tests.plugins.plants:rank_one_never_joins") == FAILED
    assert "no rank has made a step for 3 s (runtime.hang_timeout_s)" in run.log
    assert run.findings == []


def place() -> dict[str, str]:
    return {"SLURM_LAUNCH_NODE_IPADDR": "127.0.0.7", nodes.PORT: str(nodes._free_port())}


def test_waiting_for_other_nodes_is_not_a_hang(fresh: Fresh) -> None:
    """A node joins that connects later than hang_timeout_s, and the training finishes."""
    hang_s = 5
    changes = {"runtime": {"nproc": 1, "nodes": 2, "device": "cpu", "hang_timeout_s": hang_s}}
    run, where = fresh(changes), place()
    first = of_two_nodes(run, 0, **where)
    until(lambda: is_in_rendezvous(run), "the first launcher to wait")
    since = time.monotonic()
    until(lambda: time.monotonic() - since > hang_s + 2, "more than the timeout")
    second = of_two_nodes(run, 1, **where)
    assert [run.warm.wait(pid) for pid in (first, second)] == [FINISHED, FINISHED], run.log


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (0, "no launcher of node 1 of the job has connected to 127.0.0.7:{port} within 1 s"),
        (1, "node 1: the launcher of node 0 does not answer at 127.0.0.7:{port} after 6 s"),
    ],
)
def test_a_launcher_names_the_node_that_does_not_connect(fresh: Fresh, node: int, message: str) -> None:
    """The first launcher connects once it owns the workspace, which can take lease_timeout_s (5 s here)."""
    changes = {"runtime": {"nproc": 1, "nodes": 2, "device": "cpu", "hang_timeout_s": 1}}
    run, where = fresh(changes), place()
    pid = of_two_nodes(run, node, plant="tests.plugins.plants:nodes_come_at_once", **where)
    assert run.warm.wait(pid) == FAILED
    last = run.log.splitlines()[-1]
    assert message.format(port=where[nodes.PORT]) in last
    assert "Check the log of the job for that node" in last
