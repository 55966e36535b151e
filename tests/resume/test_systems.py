"""A training on the CPU needs no feature that only Linux has."""

from __future__ import annotations

from tests.resume.conftest import Fresh
from tests.support.cases import with_ranks
from tests.support.project import FAILED, FINISHED, STOPPED, differences


def test_a_training_on_a_mac_is_on_its_cpu_and_exact(fresh: Fresh) -> None:
    run, straight, mac = fresh(with_ranks(2)), fresh(with_ranks(2)), "tests.plugins.plants:the_system_is_a_mac"
    assert straight.attempt(plant=mac) == FINISHED
    assert run.attempt({"point": "optimizer", "count": 4, "signal": "SIGTERM"}, plant=mac) == STOPPED
    assert run.attempt({"point": "backward", "count": 4, "signal": "SIGKILL", "rank": 0}, plant=mac) == FAILED
    assert run.attempt(plant=mac) == FINISHED
    assert differences(straight, run) == []
    assert "in memory, on cpu" in run.log
    assert run.findings == []
