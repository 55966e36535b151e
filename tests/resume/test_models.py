"""Each shipped model resumes exactly: killed or stopped, on one rank or two."""

from __future__ import annotations

from typing import Any

import pytest

from tests.resume.conftest import Fresh
from tests.support.project import FAILED, KILLED, PASS, STOPPED

TOKENS = {"name": "tests.plugins.small", "params": {"kind": "tokens"}}
ROWS = {"name": "tests.plugins.small", "params": {"kind": "rows"}}
BY_PATH = {"name": "tests.plugins.nets:Net", "params": {"inputs": "data.features", "classes": "data.outputs"}}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet": (1, {"model": {"name": "resnet", "params": {"width": 2, "dropout": 0.1}}}),
    "resnet on two ranks": (2, {"model": {"name": "resnet", "params": {"width": 2}}}),
    "transformer": (1, {"data": TOKENS, "model": {"name": "transformer", "params": {"layers": 1, "dropout": 0.1}}}),
    "transformer on two ranks": (2, {"data": TOKENS, "model": {"name": "transformer", "params": {"width": 16}}}),
    "transformer shared by two ranks": (
        2,
        {"data": TOKENS, "model": {"name": "transformer", "params": {"width": 16}}, "training": {"parallel": "fsdp"}},
    ),
    "a class by its path": (1, {"model": BY_PATH}),
    "a class by its path on two ranks": (2, {"model": BY_PATH}),
    "a class by its path shared by two ranks": (2, {"model": BY_PATH, "training": {"parallel": "fsdp"}}),
    "tabular": (1, {"data": ROWS, "model": {"name": "tabular", "params": {"dropout": 0.1}}}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_is_stopped_and_killed_ends_in_equal_bits(fresh: Fresh, reference: Fresh, case: str) -> None:
    ranks, changes = CASES[case]
    training = {"epochs": 2, "batch_size": 300 if "resnet" in case else 60, "ema_decay": None}
    changes = {
        **changes,
        "training": training | changes.get("training", {}),
        "runtime": {"nproc": ranks},
        "checkpoint": {"interval_steps": 1},
    }
    run, last = fresh(changes), ranks - 1
    assert run.attempt({"point": "backward", "count": 2, "rank": last, "signal": "SIGTERM"}) == STOPPED
    assert run.newest_step() == 2
    assert run.attempt({"point": "optimizer", "count": 2, "rank": 0, "signal": "SIGKILL"}) in (KILLED, FAILED)
    assert run.verdict(reference(changes)) == PASS
