"""A save holds the state of one step, however late a device copies it. Kills by SIGKILL, since a stop waits."""

from __future__ import annotations

from typing import Any

import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import ACCUMULATED, with_ranks
from tests.support.project import FAILED, PASS, STOPPED, merged

LONG_S = 600.0  # a model is compiled once on a machine
EVERY_STEP: dict[str, Any] = {"checkpoint": {"interval_steps": 1}}
# 66 samples per step; every case has batch norm and ema_decay
VARIANTS: dict[str, dict[str, Any]] = {
    "batch norm and averages": {},
    "accumulation_steps": ACCUMULATED,
    "teacher": {"model": {"name": "tests.plugins.teacher"}},
    "teacher beside a frozen backbone": {"model": {"name": "tests.plugins.teacher", "params": {"backbone": 5000}}},
    "ddp": with_ranks(2),
    "ddp with accumulation": merged(with_ranks(2), {"training": {"accumulation_steps": 2}}),
    "compiled": merged(with_ranks(1), {"training": {"compile": True, "ema_decay": None}}),
    "fsdp": merged(with_ranks(2), {"training": {"parallel": "fsdp"}}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_save_that_is_copied_late_holds_one_step(fresh: Fresh, reference: Fresh, name: str) -> None:
    changes = merged(VARIANTS[name], EVERY_STEP)
    run = fresh(changes)
    for steps in (2, 4, 8):
        plant = "tests.support.late:copies_come_late"
        fault = {"point": "commit", "count": steps, "signal": "SIGKILL", "rank": 0}
        assert run.attempt(fault, plant=plant, timeout_s=LONG_S) == FAILED
    assert run.newest_step() >= 8  # each kill loses a finished step, and the save of the step before it
    assert run.verdict(reference(changes)) == PASS


@pytest.mark.parametrize("backbone", [0, 5000])
def test_a_stop_inside_a_step_saves_what_its_forward_passes_have_not_changed(
    fresh: Fresh, reference: Fresh, backbone: int
) -> None:
    model = {"model": {"name": "tests.plugins.teacher", "params": {"backbone": backbone}}}
    changes = merged(model, {"training": {"accumulation_steps": 4}})
    run = fresh(changes)
    for count in (7, 11):
        assert run.attempt({"point": "forward", "count": count, "signal": "SIGTERM", "rank": 0}) == STOPPED
    assert run.verdict(reference(changes)) == PASS
