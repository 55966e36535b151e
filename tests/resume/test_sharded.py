"""A model that the ranks share (fsdp) goes on exactly, too; what one of them cannot save, none of them has saved."""

from __future__ import annotations

from typing import Any

import pytest

from tests.resume.conftest import Fresh
from tests.resume.project import FAILED, KILLED, PASS, STOPPED, differences


def shared(ranks: int, **training: Any) -> dict[str, Any]:
    """Buffers, generators, odd numbers of rows, a tied weight and an average: whatever a part may lose."""
    return {
        "model": {"params": {"hidden": 23, "tied": True}},
        "training": {"epochs": 2, "batch_size": 132, "parallel": "fsdp", **training},
        "checkpoint": {"interval_steps": 2},
        "runtime": {"nproc": ranks},
    }


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_two_runs_that_share_a_model_are_equal(fresh: Fresh, reference: Fresh, ranks: int) -> None:
    other = fresh(shared(ranks))
    other.finish()
    assert differences(reference(shared(ranks)), other) == []


@pytest.mark.parametrize("ranks", [2])
def test_ranks_that_share_a_model_are_exact(fresh: Fresh, reference: Fresh, ranks: int) -> None:
    run, last = fresh(shared(ranks)), ranks - 1
    for fault, code in (
        ({"point": "backward", "count": 3, "rank": 0}, FAILED),
        ({"point": "optimizer", "count": 4, "rank": last, "signal": "SIGTERM"}, STOPPED),
        ({"point": "warm-up", "count": 2, "rank": last}, FAILED),
        ({"point": "load", "count": 1, "rank": last}, FAILED),
        ({"point": "writing", "count": 1, "rank": last}, FAILED),
        ({"point": "writing", "count": 1, "rank": 0}, FAILED),
        ({"point": "copied", "count": 1, "rank": last, "signal": "SIGTERM"}, STOPPED),
        ({"point": "validate", "count": 1, "rank": 1, "signal": "SIGTERM"}, STOPPED),
        ({"point": "gather", "count": 1, "rank": last, "target": "launcher"}, KILLED),
        ({"point": "poll", "count": 3, "rank": 0, "target": "group"}, KILLED),
    ):
        assert run.attempt({"signal": "SIGKILL", **fault}) == code, fault
    assert run.verdict(reference(shared(ranks))) == PASS
