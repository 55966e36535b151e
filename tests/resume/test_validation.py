"""The sums of a validation are read from the device once in many batches; a save includes every measured batch."""

from __future__ import annotations

from typing import Any

import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import with_ranks
from tests.support.project import FAILED, FINISHED, PASS, STOPPED, merged
from workflow_lib import checkpoint
from workflow_lib.training.validation import MAX_PENDING_BATCHES

ONE: dict[str, Any] = {"training": {"epochs": 1, "batch_size": 6}, "checkpoint": {"interval_steps": 1000}}
TWO = merged(with_ranks(2), merged(ONE, {"training": {"batch_size": 2}}))
SAMPLES = 270


@pytest.mark.parametrize("changes", [ONE, TWO], ids=["one rank", "two ranks"])
def test_a_stop_between_two_reads_is_exact(fresh: Fresh, reference: Fresh, changes: dict[str, Any]) -> None:
    batch, ranks = changes["training"]["batch_size"], changes.get("runtime", {}).get("nproc", 1)
    assert SAMPLES // batch // ranks > 3 + MAX_PENDING_BATCHES + 2
    run = fresh(changes)
    for passed in (3, MAX_PENDING_BATCHES, 2):  # before the first read, at it, and after it
        assert run.attempt({"point": "validate", "count": passed, "signal": "SIGTERM"}) == STOPPED
    assert run.attempt({"point": "validate", "count": 2, "signal": "SIGKILL"}) == FAILED
    newest = checkpoint.read_newest(run.checkpoints)
    assert newest is not None
    seen = checkpoint.read_state(newest)["progress"]["validation"]["samples"]
    assert seen == newest.about["cursor"]["val_index"] * batch > MAX_PENDING_BATCHES
    assert run.verdict(reference(changes)) == PASS


def test_the_device_is_not_read_at_every_batch(fresh: Fresh) -> None:
    run = fresh(ONE)
    assert run.attempt(plant="tests.plugins.plants:reads_are_counted") == FINISHED
    batches, reads = map(int, (run.folder / "reads.txt").read_text().split())
    assert batches == SAMPLES // ONE["training"]["batch_size"] > MAX_PENDING_BATCHES
    assert reads <= batches // MAX_PENDING_BATCHES + 5  # the curve, the rate: once an epoch


def test_a_validation_that_diverged_is_not_saved(fresh: Fresh) -> None:
    run = fresh(ONE)
    fault = {"point": "validate", "count": 3, "signal": "SIGTERM"}
    assert run.attempt(fault, plant="tests.plugins.plants:validation_diverges") == FAILED
    assert "diverged" in run.log
    assert run.newest_step() == 0
