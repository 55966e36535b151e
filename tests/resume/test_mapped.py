"""A run that prefetches from its shards is as exact as a run that holds its data in memory."""

from __future__ import annotations

from typing import Any

import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import ACCUMULATED, with_ranks
from tests.support.project import FAILED, FINISHED, PASS, STOPPED

SHARDS: dict[str, Any] = {"data": {"in_memory": False, "shard_samples": 100}}


def mapped(changes: dict[str, Any]) -> dict[str, Any]:
    return {**changes, **SHARDS, "runtime": {**changes.get("runtime", {}), "workers": 3}}


@pytest.mark.parametrize("changes", [{}, ACCUMULATED, with_ranks(2)], ids=["one rank", "accumulated", "two ranks"])
def test_a_run_that_prefetches_ends_as_a_run_from_memory(
    fresh: Fresh, reference: Fresh, changes: dict[str, Any]
) -> None:
    run = fresh(mapped(changes))
    last = changes.get("runtime", {}).get("nproc", 1) - 1
    for fault, code in (
        ({"point": "fetch", "count": 3}, FAILED),
        ({"point": "backward", "count": 5, "signal": "SIGTERM"}, STOPPED),
        ({"point": "validate", "count": 1, "signal": "SIGTERM"}, STOPPED),
        ({"point": "validate", "count": 1}, FAILED),
    ):
        assert run.attempt({"signal": "SIGKILL", "rank": last, **fault}) == code, fault
    assert "are read from" in run.log
    assert run.verdict(reference(changes)) == PASS


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_long_verification_of_data_is_not_a_hang(fresh: Fresh, in_memory: bool) -> None:
    """16 shards take three quarters of a second each; a rank must make progress within 10 seconds."""
    changes = {"data": {"in_memory": in_memory, "shard_samples": 100}, "runtime": {"hang_timeout_s": 10, "workers": 0}}
    run = fresh({**changes, "training": {"epochs": 1}})
    assert run.attempt(plant="tests.plugins.plants:shards_are_slow") == FINISHED, run.log
