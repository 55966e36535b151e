"""Adapters beside frozen weights of Transformers: exact after kills and stops, frozen bits, small checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.resume.conftest import Fresh
from tests.support.cases import IN_TRAINING, adapted
from tests.support.project import FAILED, KILLED, PASS, STOPPED, TERMINATED, merged
from tests.support.small_models import LLAMA_SIZES, PARTS, save
from tests.support.warm import Warm


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Path:
    warm.load(*PARTS)
    return save(tmp_path_factory.mktemp("models") / "llama", "llama", **LLAMA_SIZES)


def changes(saved: Path, ranks: int, **training: Any) -> dict[str, Any]:
    return merged(adapted(str(saved), ranks), {"training": training})


def test_a_fine_tuning_interrupted_once_at_every_point_is_exact(fresh: Fresh, reference: Fresh, saved: Path) -> None:
    """A kill and a stop in turn. `scripts/chaos adapters` sends both at every point, also to 2 and 3 ranks."""
    settings = changes(saved, 1)
    run = fresh(settings)
    for turn, (place, count, rank) in enumerate(IN_TRAINING):
        signal = ("SIGTERM", "SIGKILL")[turn % 2]
        code = run.attempt({"point": place, "count": count, "signal": signal, "rank": rank})
        if signal == "SIGTERM":
            assert code == (STOPPED if place != "attempt" else TERMINATED), place
        else:
            assert code == (KILLED if rank < 0 else FAILED), place
    assert run.verdict(reference(settings)) == PASS


@pytest.mark.parametrize(("ranks", "parallel"), [(2, "ddp"), (3, "ddp"), (2, "fsdp")])
def test_a_fine_tuning_that_is_stopped_and_killed_ends_in_equal_bits(
    fresh: Fresh, reference: Fresh, saved: Path, ranks: int, parallel: str
) -> None:
    settings, last = changes(saved, ranks, parallel=parallel, epochs=1), ranks - 1
    run = fresh(settings)
    assert run.attempt({"point": "backward", "count": 2, "rank": last, "signal": "SIGTERM"}) == STOPPED
    assert run.newest_step() == 2
    assert run.attempt({"point": "optimizer", "count": 2, "rank": 0, "signal": "SIGKILL"}) in (KILLED, FAILED)
    assert run.verdict(reference(settings)) == PASS


def test_the_base_keeps_its_bits_and_neither_checkpoints_nor_moments_have_it(reference: Fresh, saved: Path) -> None:
    run = reference(changes(saved, 1))
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


def test_a_fine_tuning_starts_from_the_adapters_of_another(fresh: Fresh, reference: Fresh, saved: Path) -> None:
    source = reference(changes(saved, 1)).output.with_name("model.safetensors")
    start = {"model": {"init": {"from": str(source)}}, "optimizer": {"lr": 1e-30}, "training": {"ema_decay": None}}
    run = fresh(merged(changes(saved, 1, epochs=1), start))
    run.finish()
    given, trained = load_file(source), load_file(run.output.with_name("model.safetensors"))
    assert given.keys() == trained.keys()
    assert all(value.equal(given[name]) for name, value in trained.items())
    record = json.loads(run.output.read_text())["initialised"]
    assert (record["taken"], record["not_taken"], record["unused"]) == (len(given), [], [])


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
