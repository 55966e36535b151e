"""Every optimizer, schedule and kind of loss is exact: a stop in an epoch and a kill after it change no bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import with_ranks
from tests.support.project import FAILED, PASS, SETTINGS, STOPPED, copy, differences, merged, prepare
from tests.support.repository import ROOT
from tests.support.warm import Warm

IN_AN_EPOCH = {"point": "optimizer", "count": 21, "signal": "SIGTERM"}
LATER = {"point": "commit", "count": 14, "signal": "SIGKILL"}

OWN: dict[str, Any] = {
    "optimizer": {"name": "tests.plugins.own:Heavy", "lr": 0.05, "weight_decay": 0.01},
    "schedule": {"name": "tests.plugins.own:noam", "params": {"rise": 0.2}},
    "training": {"loss": "tests.plugins.own:smoothed", "loss_params": {"power": 1.5, "noise": 0.1}},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "sgd, step": {
        "optimizer": {"name": "sgd", "lr": 0.05, "nesterov": True},
        "schedule": {"name": "step", "every_epochs": 1, "factor": 0.5},
    },
    "lion, one cycle": {"optimizer": {"name": "lion"}, "schedule": {"name": "one_cycle"}},
    "muon, linear": {
        "optimizer": {"name": "muon"},
        "model": {"params": {"tied": True}},
        "schedule": {"name": "linear"},
    },
    "muon, fp16": {
        "optimizer": {"name": "muon"},
        "model": {"params": {"tied": True}},
        "training": {"precision": "fp16", "accumulation_steps": 2},
    },
    "focal, weighted": {"training": {"focal_gamma": 2.0, "class_weights": "balanced", "label_smoothing": 0.1}},
    "balanced sampling": {"training": {"sampling": "balanced"}},
    "recomputed": {"training": {"activation_checkpointing": True, "accumulation_steps": 2, "clip_norm": None}},
    "recomputed, two ranks": merged(with_ranks(2), {"training": {"activation_checkpointing": True, "epochs": 3}}),
    "recomputed, two ranks that share": merged(
        with_ranks(2), {"training": {"activation_checkpointing": True, "parallel": "fsdp", "epochs": 3}}
    ),
    "augmented": {
        "training": {"accumulation_steps": 2},
        "augment": {"flip_horizontal": 0.5, "rotation": 10, "noise": 0.1, "mixup": 0.4, "cutmix": 1.0},
    },
    "augmented, balanced": {"augment": {"noise": 0.1, "mixup": 0.4}, "training": {"sampling": "balanced"}},
    "augmented, channels_last, two ranks": merged(
        with_ranks(2),
        {"augment": {"shift": 0.2, "mixup": 0.4}, "training": {"epochs": 3, "memory_format": "channels_last"}},
    ),
    "own loss, optimizer and schedule": merged(OWN, {"training": {"accumulation_steps": 2}}),
    "own, two ranks": merged(with_ranks(2), merged(OWN, {"training": {"epochs": 3}})),
    "own, three ranks": merged(with_ranks(3), merged(OWN, {"training": {"epochs": 3}})),
    "lion, two ranks": merged(with_ranks(2), {"optimizer": {"name": "lion"}, "training": {"epochs": 3}}),
}
OFF: dict[str, Any] = {
    "training": {"focal_gamma": 0.0, "class_weights": None, "label_smoothing": 0.0, "sampling": "shuffled"},
    "augment": dict.fromkeys(("flip_horizontal", "rotation", "noise", "mixup", "cutmix"), 0),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_exact(fresh: Fresh, reference: Fresh, name: str) -> None:
    """The variant has other bits than the plain training or, if it only saves memory, the same."""
    run = fresh(VARIANTS[name])
    count = 12 if "ranks" in name else 21
    assert run.attempt({**IN_AN_EPOCH, "count": count}) == STOPPED
    assert run.attempt({**LATER, "count": 5 if "ranks" in name else 14}) == FAILED
    assert run.verdict(reference(VARIANTS[name])) == PASS
    if name.startswith("recomputed"):
        plain = merged(VARIANTS[name], {"training": {"activation_checkpointing": False}})
        assert differences(reference(plain), run) == []
    if name in ("augmented", "focal, weighted", "balanced sampling"):
        plain = merged(VARIANTS[name], OFF)
        assert any(one.startswith("model.") for one in differences(reference(plain), run))


TASKS: dict[str, tuple[dict[str, Any], str]] = {
    "regression": (
        {
            "data": {"name": "tests.plugins.numbers"},
            "model": {"name": "mlp"},
            "optimizer": {"lr": 0.01},
            "training": {"select_metric": "val_mae", "ema_decay": None},
        },
        "val_mae,val_mae/0,val_mae/1",
    ),
    "text classification": (
        {
            "data": {"name": "labelled_text", "params": {"path": "texts.csv", "length": 32}},
            "model": {"name": "text_encoder", "params": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.1}},
            "optimizer": {"lr": 5e-4},
            "training": {"label_smoothing": 0.1, "accumulation_steps": 2, "ema_decay": None},
        },
        "val_accuracy",
    ),
    "segmentation": (
        {
            "data": {"name": "tests.plugins.scenes"},
            "model": {"name": "unet", "params": {"levels": 1, "width": 8}},
            "optimizer": {"lr": 0.01},
            "augment": {"flip_vertical": 0.5, "crop": 1},
            "training": {"focal_gamma": 1.0},
        },
        "val_mean_iou",
    ),
    "language": (
        {
            "data": {"name": "text", "params": {"path": "text.txt", "context": 16}},
            "model": {"name": "transformer", "params": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.1}},
            "optimizer": {"name": "muon"},
            "training": {"label_smoothing": 0.1, "loss_chunk": 40, "accumulation_steps": 2, "ema_decay": None},
        },
        "val_accuracy",
    ),
}


def labelled(text: str) -> str:
    """Return a CSV file of short pieces of the text, of which every other one is in capitals."""
    pieces = [" ".join(text[start : start + 24].replace('"', "").split()) for start in range(0, len(text), 24)]
    rows = [f'"{piece.upper() if row % 2 else piece}",{row % 2}' for row, piece in enumerate(pieces) if piece]
    return "\n".join(["text,label", *rows])


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_exact(tmp_path: Path, warm: Warm, name: str) -> None:
    changes, metric = TASKS[name]
    text = (ROOT / "docs" / "exact-resume.md").read_text()
    files = {"text.txt": text, "texts.csv": labelled(text)}
    run = prepare(tmp_path / "run", warm, merged(SETTINGS, changes), files)
    straight = copy(run, tmp_path / "straight")
    straight.finish()
    steps = straight.sealed().step
    assert run.attempt({"point": "optimizer", "count": steps // 2, "signal": "SIGTERM"}) == STOPPED
    assert run.attempt({"point": "validate", "count": 2, "signal": "SIGKILL"}) == FAILED
    assert run.verdict(straight) == PASS
    header, first, *_, last = (run.output.with_name("history.csv")).read_text().splitlines()
    assert header == f"epoch,step,lr,train_loss,val_loss,{metric}"
    better = float(last.split(",")[5]) - float(first.split(",")[5])
    assert better < 0 if metric.startswith("val_mae") else better > 0
