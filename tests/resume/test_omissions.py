"""The comparison can fail: each kind of state is left out of a resume once, and the difference is named."""

from __future__ import annotations

from typing import Any

import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import GAN
from tests.support.project import FAILED, FINISHED, KILLED, PASS, STOPPED, differences

PLAIN: dict[str, Any] = {}
HALF: dict[str, Any] = {"training": {"precision": "fp16"}}
# learns so fast that the loss goes up and down, and the best epoch is the last but one
RESTLESS: dict[str, Any] = {
    "training": {"epochs": 6, "ema_decay": None, "clip_norm": None},
    "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.9},
    "schedule": {"name": "plateau", "warmup_epochs": 0, "patience": 0, "factor": 0.7},
}
PATIENT: dict[str, Any] = {
    **RESTLESS,
    "training": {**RESTLESS["training"], "early_stopping": {"metric": "val_loss", "patience": 1, "min_delta": 0.2}},
}
IN_AN_EPOCH = {"point": "optimizer", "count": 24, "signal": "SIGTERM"}
IN_A_GAN = {"point": "commit", "count": 8, "signal": "SIGTERM"}
IN_VALIDATION = {"point": "validate", "count": 3, "signal": "SIGTERM"}
IN_THE_THIRD = {"point": "optimizer", "count": 40, "signal": "SIGTERM"}
LATE = {"point": "optimizer", "count": 90, "signal": "SIGTERM"}
HOOKED: dict[str, Any] = {"training": {"hooks": "tests.plugins.watching"}}
LOGGED: dict[str, Any] = {"training": {"log_every_steps": 5}}
AFTER_THE_ROW = {"point": "epoch", "count": 2, "signal": "SIGKILL"}

# omitted state: changes to the experiment, fault of the first attempt, name that must differ, names that must not
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str, tuple[str, ...]]] = {
    "model": (PLAIN, IN_AN_EPOCH, "model.1.weight", ()),
    "buffers": (PLAIN, IN_AN_EPOCH, "model.2.running_mean", ("optimizer", "ranks", "model.1.weight")),
    "moments": (PLAIN, IN_AN_EPOCH, "optimizer.0.exp_avg", ("ranks.0.python", "ranks.0.torch")),
    "plateau": (RESTLESS, LATE, "state.progress.plateau.scale", ("ranks.0.python",)),
    "scaler": (HALF, IN_AN_EPOCH, "state.scaler", ("ranks.0.python",)),
    "hooks": (HOOKED, IN_AN_EPOCH, "state.hooks.steps", ("model", "optimizer", "ranks", "state.progress")),
    "ema": (PLAIN, IN_AN_EPOCH, "ema.1.weight", ("optimizer", "ranks")),
    "python": (PLAIN, IN_AN_EPOCH, "ranks.0.python", ("ranks.0.numpy", "ranks.0.torch")),
    "numpy": (PLAIN, IN_AN_EPOCH, "ranks.0.numpy", ("ranks.0.python", "ranks.0.torch")),
    "torch": (PLAIN, IN_AN_EPOCH, "ranks.0.torch", ("ranks.0.python", "ranks.0.numpy")),
    "sample": (PLAIN, IN_AN_EPOCH, "model.1.weight", ()),
    "loss_sum": (PLAIN, IN_AN_EPOCH, "state.progress.history.1.train_loss", ("model", "optimizer", "ranks")),
    "validation": (PLAIN, IN_VALIDATION, "state.progress.history.0.val_loss", ("model", "optimizer", "ranks")),
    "best_metric": (RESTLESS, LATE, "state.progress.best.epoch", ("model", "optimizer", "ranks")),
    "best_weights": (RESTLESS, LATE, "best", ("model", "optimizer", "ranks", "state")),
    "patience": (PATIENT, IN_THE_THIRD, "state.progress.history", ()),
    "log_sum": (LOGGED, IN_AN_EPOCH, "log.log.rows", ("model", "optimizer", "ranks", "state")),
    "log": (LOGGED, IN_AN_EPOCH, "log.log.rows", ("model", "optimizer", "ranks", "state")),
    "logged": (GAN, IN_A_GAN, "state.progress.history.0.train_critic", ("model", "optimizer", "ranks")),
    "values": (GAN, IN_A_GAN, "state.step.generator_steps", ("model", "optimizer", "ranks", "state.progress")),
    "metrics": (PLAIN, AFTER_THE_ROW, "file metrics.jsonl", ("model", "optimizer", "ranks", "state")),
}


@pytest.mark.parametrize("state", CASES)
def test_a_state_that_a_resume_leaves_out_is_named(fresh: Fresh, reference: Fresh, state: str) -> None:
    changes, fault, name, untouched = CASES[state]
    run = fresh(changes)
    assert run.attempt(fault) in (STOPPED, FAILED)
    assert run.attempt(plant=f"tests.plugins.omissions:without_{state}") == FINISHED
    found = differences(reference(changes), run)
    assert any(one == name or one.startswith(f"{name}.") for one in found), found
    assert not [one for one in found if any(one == part or one.startswith(f"{part}.") for part in untouched)], found


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (HOOKED, IN_AN_EPOCH),
        (HALF, IN_AN_EPOCH),
        (RESTLESS, LATE),
        (PATIENT, IN_THE_THIRD),
        (PLAIN, IN_VALIDATION),
        (PLAIN, AFTER_THE_ROW),
        (LOGGED, IN_AN_EPOCH),
        (GAN, IN_A_GAN),
    ],
    ids=["hooks", "half", "restless", "patient", "validation", "metrics", "log", "step"],
)
def test_with_nothing_left_out_nothing_differs(fresh: Fresh, reference: Fresh, changes: Any, fault: Any) -> None:
    run = fresh(changes)
    assert run.attempt(fault) in (STOPPED, FAILED)
    assert run.verdict(reference(changes)) == PASS


@pytest.mark.parametrize(
    ("plant", "expected"), [(None, []), ("tests.plugins.omissions:without_sealed_metrics", ["file metrics.jsonl"])]
)
def test_a_power_cut_just_after_the_run_is_sealed_loses_the_curve_only_if_it_was_not_synced(
    fresh: Fresh, reference: Fresh, plant: str | None, expected: list[str]
) -> None:
    run = fresh()
    assert run.attempt({"point": "optimizer", "count": 48, "signal": "SIGTERM"}) == STOPPED
    in_retention = {"mode": "unsynced", "path": "*/checkpoints/step-*", "operation": "rename", "target": "group"}
    assert run.attempt(in_retention, plant=plant) == KILLED
    run.finish()
    assert differences(reference(), run) == expected
