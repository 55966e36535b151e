"""Adapters beside frozen weights of Transformers: exact after kills and stops, frozen bits, small checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.resume.conftest import Fresh
from tests.support.project import FAILED, KILLED, PASS, STOPPED
from tests.support.small_models import save

TOKENS = {"name": "tests.plugins.small", "params": {"kind": "tokens"}}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "llama", "llama", hidden_size=64, intermediate_size=256)


def changes(saved: Path, ranks: int, **training: Any) -> dict[str, Any]:
    return {
        "data": TOKENS,
        "model": {"name": "transformers", "params": {"path": str(saved), "lora": {"r": 2, "dropout": 0.1}}},
        "training": {"epochs": 2, "batch_size": 60, "ema_decay": 0.9, **training},
        "runtime": {"nproc": ranks},
        "checkpoint": {"interval_steps": 1},
    }


@pytest.mark.parametrize(("ranks", "parallel"), [(1, "ddp"), (2, "ddp"), (3, "ddp"), (2, "fsdp")])
def test_a_fine_tuning_that_is_stopped_and_killed_ends_in_equal_bits(
    fresh: Fresh, reference: Fresh, saved: Path, ranks: int, parallel: str
) -> None:
    run, last = fresh(changes(saved, ranks, parallel=parallel)), ranks - 1
    assert run.attempt({"point": "backward", "count": 2, "rank": last, "signal": "SIGTERM"}) == STOPPED
    assert run.newest_step() == 2
    assert run.attempt({"point": "optimizer", "count": 2, "rank": 0, "signal": "SIGKILL"}) in (KILLED, FAILED)
    assert run.verdict(reference(changes(saved, ranks, parallel=parallel))) == PASS


def test_the_base_keeps_its_bits_and_neither_checkpoints_nor_moments_have_it(reference: Fresh, saved: Path) -> None:
    run = reference(changes(saved, 1, parallel="ddp"))
    files = {file.stem: load_file(file) for file in run.sealed().path.glob("*.safetensors")}
    for group in ("model", "best", "ema"):
        assert files[group]
        assert all("lora_" in name or "inv_freq" in name for name in files[group]), group
    adapters = [name for name in files["model"] if "lora_" in name]
    assert len([key for key in files["optimizer"] if key.endswith(".exp_avg")]) == len(adapters)
    base = saved / "model.safetensors"
    checkpoint = sum(file.stat().st_size for file in run.sealed().path.iterdir())
    assert checkpoint < base.stat().st_size / 2
    assert run.output.with_name("model.safetensors").stat().st_size < base.stat().st_size / 5
    assert any(value.abs().max() > 0 for name, value in files["model"].items() if "lora_B" in name)


def test_an_image_model_is_fine_tuned_with_a_new_head(
    fresh: Fresh, reference: Fresh, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = save(tmp_path_factory.mktemp("models") / "vit", "vit")
    settings: dict[str, Any] = {
        "model": {"name": "transformers", "params": {"path": str(folder)}},
        "training": {"epochs": 2, "batch_size": 300, "ema_decay": None},
        "checkpoint": {"interval_steps": 1},
    }
    run = fresh(settings)
    assert run.attempt({"point": "optimizer", "count": 3, "signal": "SIGKILL"}) in (KILLED, FAILED)
    assert run.verdict(reference(settings)) == PASS
