"""Frozen weights and groups of weights are exact, with several ranks, with shards and compiled, too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.resume.conftest import Fresh
from tests.support.cases import with_ranks
from tests.support.project import FAILED, FINISHED, PASS, STOPPED, copy, merged
from workflow_lib.errors import ConfigError
from workflow_lib.files import file_digest

# the first block is frozen, with the statistics of its batch norm
FROZEN = ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")
GROUPS: dict[str, Any] = {
    "model": {"init": {"freeze": ["0.*", "1.*"], "lr_scale": {"4.*": 0.5}, "weight_decay": {"*.bias": 0.0}}},
    "training": {"clip_norm": 1.0, "ema_decay": 0.9},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "one rank": {"training": {"accumulation_steps": 2}},
    "two ranks": with_ranks(2),
    "three ranks": with_ranks(3),
    "two ranks, muon": with_ranks(2),
    "two ranks that share": merged(with_ranks(2), {"training": {"parallel": "fsdp"}}),
    "recomputed": {"training": {"activation_checkpointing": True}},
    "compiled": {"training": {"compile": True}},
}


def changes(name: str, start: str | None = None, **optimizer: Any) -> dict[str, Any]:
    found = merged(merged(with_ranks(1), VARIANTS[name]), GROUPS)
    if "muon" in name:
        init = {"freeze": ["1.*"], "lr_scale": {"3.*": 0.5}, "weight_decay": {"*.bias": 0.0}}
        model = {"name": "mlp", "params": {"hidden": [24, 12, 12]}, "init": init}
        found = {**found, "model": model, "optimizer": {"name": "muon"}}
    return merged(found, {"optimizer": optimizer, **({"model": {"init": {"from": start}}} if start else {})})


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "two ranks"])
def test_a_frozen_backbone_and_groups_are_exact(fresh: Fresh, reference: Fresh, name: str) -> None:
    run, slow = fresh(changes(name)), 600.0 if name == "compiled" else 120.0
    stop = {"point": "optimizer", "count": 5, "signal": "SIGTERM"}
    assert run.attempt(stop, timeout_s=slow) == STOPPED
    assert run.attempt({"point": "commit", "count": 4, "signal": "SIGKILL"}, timeout_s=slow) == FAILED
    assert run.verdict(reference(changes(name))) == PASS


@pytest.mark.parametrize("name", ["one rank", "two ranks", "two ranks that share"])
def test_a_training_that_starts_from_a_file_is_exact(fresh: Fresh, tmp_path: Path, name: str) -> None:
    """Its frozen weights are those of the file, whatever was killed."""
    source, run = fresh(with_ranks(1)), fresh(changes(name, start="start.safetensors"))
    source.finish()
    shutil.copy(source.output.with_name("model.safetensors"), run.folder / "start.safetensors")
    straight = copy(run, tmp_path / "straight")
    straight.finish()
    assert run.attempt({"point": "build", "count": 1, "signal": "SIGKILL"}) == FAILED
    assert run.attempt({"point": "optimizer", "count": 5, "signal": "SIGTERM"}) == STOPPED
    assert run.attempt({"point": "commit", "count": 2, "signal": "SIGKILL"}) == FAILED
    assert run.verdict(straight) == PASS
    given, trained = (load_file(project.output.with_name("model.safetensors")) for project in (source, run))
    assert {name for name in given if torch.equal(given[name], trained[name])} == {*FROZEN}
    record = json.loads(run.output.read_text())["initialised"]
    assert record == {
        "from": "start.safetensors", "digest": file_digest(run.folder / "start.safetensors"), "taken": len(given),
        "not_taken": [], "unused": [],
    }  # fmt: skip


def test_other_content_of_the_file_is_trained_from_the_start(fresh: Fresh) -> None:
    source, run = fresh(with_ranks(1)), fresh(changes("one rank", start="start.safetensors"))
    source.finish()
    weights = load_file(source.output.with_name("model.safetensors"))
    save_file(weights, run.folder / "start.safetensors")
    run.finish()
    first = run.workspace
    save_file({name: value + 1 for name, value in weights.items()}, run.folder / "start.safetensors")
    assert run.attempt() == FINISHED
    assert len([*first.parent.glob("*/attempts")]) == 2
    assert "trained this run up to step" in run.log
    (run.folder / "start.safetensors").unlink()
    assert run.attempt() == ConfigError.exit_code
    assert "model.init.from: no such file: start.safetensors" in run.log


@pytest.mark.parametrize("name", ["one rank", "three ranks"])
def test_frozen_weights_stay_and_have_no_moments(fresh: Fresh, reference: Fresh, name: str) -> None:
    """They are those of a run with another learning rate, so they have never been changed."""
    run, other = reference(changes(name)), reference(changes(name, lr=0.01))
    mine, theirs = (load_file(project.sealed().path / "model.safetensors") for project in (run, other))
    assert sorted(name for name in mine if torch.equal(mine[name], theirs[name])) == sorted(
        [*FROZEN, "5.num_batches_tracked"]
    )
    moments = load_file(run.sealed().path / "optimizer.safetensors")
    trained = [mine[name].shape for name in ("4.weight", "5.weight", "10.weight", "5.bias", "10.bias")]
    assert sorted(value.shape for key, value in moments.items() if key.endswith(".exp_avg")) == sorted(trained)
    averages = load_file(run.sealed().path / "ema.safetensors")
    assert sorted(averages) == ["10.bias", "10.weight", "4.weight", "5.bias", "5.weight"]
