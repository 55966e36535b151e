"""A resume holds one copy of the state in each rank, however large the state is."""

from __future__ import annotations

from typing import Any

import pytest

from tests.resume.conftest import Fresh
from tests.support.project import STOPPED, merged
from workflow_lib import checkpoint

WIDE: dict[str, Any] = {
    "model": {"name": "mlp", "params": {"hidden": [3000, 3000]}},
    "training": {"epochs": 1, "batch_size": 600},
    "checkpoint": {"interval_steps": 1000},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "one rank": {},
    "two ranks": {"runtime": {"nproc": 2}},
    "two ranks that share": {"runtime": {"nproc": 2}, "training": {"parallel": "fsdp"}},
}
PLANT = "tests.support.measuring:the_load_is_measured"
SLACK = 24 << 20  # batches, buffers of the C library, code that is loaded for the first time


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resume_holds_one_copy_of_the_state_in_memory(fresh: Fresh, name: str) -> None:
    run = fresh(merged(WIDE, VARIANTS[name]))
    assert run.attempt({"point": "commit", "count": 1, "signal": "SIGTERM"}) == STOPPED
    assert run.attempt({"point": "entered", "signal": "SIGTERM"}, plant=PLANT) == STOPPED
    newest = checkpoint.read_newest(run.checkpoints)
    assert newest is not None
    state = sum(entry["bytes"] for entry in newest.manifest["files"].values())
    weights = 4 * newest.about["parameters"]
    assert state > 3.9 * weights > 3.9 * SLACK  # weights, averages, two moments
    grown = {path.name: int(path.read_text()) for path in run.folder.glob("grown-*.txt")}
    assert len(grown) == VARIANTS[name].get("runtime", {}).get("nproc", 1)
    assert max(grown.values()) < 1.1 * state + SLACK
