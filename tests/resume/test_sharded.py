"""A sharded model (fsdp) resumes exactly, too; a save that fails on one rank fails on all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.resume.conftest import Fresh
from tests.support.cases import shared
from tests.support.project import FAILED, FINISHED, KILLED, PASS, SETTINGS, STOPPED, copy, differences, merged, prepare
from tests.support.repository import ROOT
from tests.support.warm import Warm


@pytest.mark.parametrize("ranks", [1, 3])
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


@pytest.mark.parametrize(
    "changes",
    [{"accumulation_steps": 2}, {"precision": "bf16"}, {"activation_checkpointing": True}],
    ids=["accumulated", "bf16", "recomputed"],
)
def test_ranks_that_share_a_model_are_exact_inside_a_step_and_in_other_precisions(
    fresh: Fresh, reference: Fresh, changes: dict[str, Any]
) -> None:
    run = fresh(shared(2, **changes))
    assert run.attempt({"point": "backward", "count": 6, "rank": 1, "signal": "SIGTERM"}) == STOPPED
    assert run.verdict(reference(shared(2, **changes))) == PASS


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_loses_power_in_a_save_changes_no_bit(fresh: Fresh, reference: Fresh, rank: int) -> None:
    run = fresh(shared(2))
    for count, mode in ((2, "torn"), (3, "unsynced"), (5, "unnamed")):
        fault = {"mode": mode, "path": f"{run.folder}/*/.tmp-*", "count": count, "rank": rank, "target": "group"}
        assert run.attempt(fault) == KILLED
    assert run.verdict(reference(shared(2))) == PASS


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_fails_on_one_rank_for_a_while_causes_a_warning_and_changes_no_bit(
    fresh: Fresh, reference: Fresh, rank: int
) -> None:
    run = fresh(shared(2))
    full = {"mode": "ENOSPC", "operation": "write", "path": f"{run.folder}/*/.tmp-*", "count": 2, "rank": rank}
    assert run.attempt(full) == FINISHED
    assert "No space left on device" in run.log
    assert "Training continues" in run.log
    assert run.verdict(reference(shared(2))) == PASS


def test_the_outputs_are_those_of_a_whole_model(fresh: Fresh, reference: Fresh) -> None:
    """Names and shapes are the same; numbers differ slightly, since sums over ranks are in another order."""
    one, other = reference(shared(2)), fresh(shared(2, parallel="ddp"))
    other.finish()
    mine, theirs = (load_file(run.output.with_name("model.safetensors")) for run in (one, other))
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_another_number_of_ranks_resumes_a_shared_model_and_is_not_exact(fresh: Fresh, before: int, after: int) -> None:
    run = fresh(shared(before))
    assert run.attempt({"point": "optimizer", "count": 5, "signal": "SIGTERM"}) == STOPPED
    saved = run.newest_step()
    experiment = run.folder / "experiment.yaml"
    experiment.write_text(experiment.read_text().replace(f"nproc: {before}", f"nproc: {after}"))
    assert run.attempt() == FINISHED
    assert run.began_at() == [0, saved]
    assert "not exact from here: world_size changed" in run.log
    assert run.sealed().about["exact"] is False


# nothing improves, so the best weights are older than the resume
RESTING: dict[str, Any] = {
    **shared(2, ema_decay=None),
    "model": {"name": "mlp"},
    "optimizer": {"name": "sgd", "lr": 1e-30, "weight_decay": 0.0},
}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "model": (shared(2), "moving-00001-of-00002.model.1.weight"),
    "buffers": (shared(2), "moving-00000-of-00002.model.2.running_mean"),
    "moments": (shared(2), "moving-00001-of-00002.optimizer.0.exp_avg"),
    "ema": (shared(2), "moving-00001-of-00002.ema.1.weight"),
    "torch": (shared(2), "ranks.1.torch"),
    "loss_sum": (shared(2), "state.progress.history.1.train_loss"),
    "best_weights": (RESTING, "resting-00001-of-00002"),
}


@pytest.mark.parametrize("state", CASES)
def test_a_shared_state_that_is_left_out_is_named(fresh: Fresh, reference: Fresh, state: str) -> None:
    changes, name = CASES[state]
    run = fresh(changes)
    assert run.attempt({"point": "optimizer", "count": 10, "signal": "SIGTERM"}) == STOPPED
    assert run.attempt(plant=f"tests.plugins.omissions:without_{state}") == FINISHED
    found = differences(reference(changes), run)
    assert any(one == name or one.startswith(f"{name}.") for one in found), found


def test_the_best_weights_are_not_lost(fresh: Fresh, reference: Fresh) -> None:
    run = fresh(RESTING)
    assert run.attempt({"point": "optimizer", "count": 10, "signal": "SIGTERM"}) == STOPPED
    assert run.verdict(reference(RESTING)) == PASS


def test_a_transformer_whose_blocks_are_gathered_one_by_one_is_exact(tmp_path: Path, warm: Warm) -> None:
    """Its embedding and its last layer share a weight, and its activations are recomputed."""
    changes = {
        "data": {"name": "text", "params": {"path": "text.txt", "context": 16}},
        "model": {"name": "transformer", "params": {"width": 18, "layers": 2, "heads": 2, "dropout": 0.1}},
        "training": {"epochs": 1, "parallel": "fsdp", "activation_checkpointing": True, "accumulation_steps": 2},
        "runtime": {"nproc": 2},
    }
    text = (ROOT / "docs" / "exact-resume.md").read_text()
    run = prepare(tmp_path / "run", warm, merged(SETTINGS, changes), {"text.txt": text})
    straight = copy(run, tmp_path / "straight")
    straight.finish()
    assert run.attempt({"point": "optimizer", "count": 3, "rank": 1, "signal": "SIGTERM"}) == STOPPED
    assert run.attempt({"point": "backward", "count": 5, "rank": 1}) == FAILED
    assert run.verdict(straight) == PASS
