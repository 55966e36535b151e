"""The step of every shipped model, optimizer, task and loss can be captured: it never waits for the device.

Each is computed by a graph that records its operations, with the bits of steps computed one by one; and on torch's meta
device, where a tensor has no values, so that any read of one fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.recorded_graph import RecordedGraph
from tests.support.small_training import drawn, everything, trainer
from workflow_lib import plugins
from workflow_lib.config.run import Augment
from workflow_lib.config.run_checks import GRAPH_OPTIMIZERS
from workflow_lib.data import ModelSpec, Split
from workflow_lib.training.graphed import GraphedPasses

IMAGE, META = (3, 8, 8), torch.device("meta")
FOCAL = {"focal_gamma": 2.0, "class_weights": "balanced", "label_smoothing": 0.1}
# of each case: the shapes of the data, and the settings
CASES: dict[str, tuple[ModelSpec, dict[str, Any]]] = {
    "mlp, focal, weighted": (
        ModelSpec(IMAGE, 4),
        {"model": {"name": "mlp", "params": {"hidden": [8]}}, "training": FOCAL},
    ),
    "mlp, multilabel, sgd": (
        ModelSpec(IMAGE, 4, "multilabel"),
        {"model": {"name": "mlp", "params": {"hidden": [8]}}, "optimizer": {"name": "sgd", "lr": 0.1}},
    ),
    "mlp, regression": (ModelSpec((5,), 2, "regression"), {"model": {"name": "mlp", "params": {"hidden": [8]}}}),
    "mlp, own loss": (
        ModelSpec((5,), 2, "regression"),
        {"model": {"name": "mlp", "params": {"hidden": [8]}}, "training": {"loss": "torch.nn:HuberLoss"}},
    ),
    "cnn, all augmentations": (
        ModelSpec(IMAGE, 4),
        {
            "model": {"name": "cnn", "params": {"channels": [4]}},
            "augment": {"crop": 1, "shift": 0.1, "rotation": 9, "brightness": 0.1, "contrast": 0.1}
            | {"saturation": 0.1, "noise": 0.1, "mixup": 0.3, "cutmix": 0.3}
            | {"flip_horizontal": 0.5, "flip_vertical": 0.5},
            "training": {"label_smoothing": 0.1, "accumulation_steps": 3, "clip_norm": 1.0},
        },
    ),
    "resnet": (ModelSpec(IMAGE, 4), {"model": {"name": "resnet", "params": {"width": 4, "dropout": 0.1}}}),
    "unet, segmentation": (
        ModelSpec(IMAGE, 3, "segmentation"),
        {
            "model": {"name": "unet", "params": {"levels": 1, "width": 4}},
            "augment": {"flip_horizontal": 0.5, "rotation": 9},
            "training": FOCAL,
        },
    ),
    "tabular": (
        ModelSpec((3,), 2, categories=(0, 3, 0)),
        {"model": {"name": "tabular", "params": {"hidden": [8], "dropout": 0.1}}},
    ),
    "text_encoder": (
        ModelSpec((8,), 3, "text_classification", vocabulary=20),
        {"model": {"name": "text_encoder", "params": {"layers": 1, "heads": 2, "width": 8, "dropout": 0.1}}},
    ),
    "transformer, loss in chunks": (
        ModelSpec((8,), 20, "language"),
        {
            "model": {"name": "transformer", "params": {"layers": 1, "heads": 2, "width": 8}},
            "training": {"loss_chunk": 24, "label_smoothing": 0.1, "ema_decay": 0.9},
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_shipped_part_is_computed_by_a_graph_with_the_same_bits(tmp_path: Path, case: str) -> None:
    spec, settings = CASES[case]
    graph = RecordedGraph()
    done = [
        trainer(tmp_path / name, settings, chosen, spec=spec, split=drawn(spec))
        for name, chosen in (("graph", graph), ("steps", None))
    ]
    for training in done:
        training.fit()
    assert graph.replays == 9, (tmp_path / "graph" / "events.jsonl").read_text()
    assert everything(done[0]) == everything(done[1])


def test_every_shipped_model_task_optimizer_and_augmentation_is_among_the_cases() -> None:
    """Models of Hugging Face are tested with the others of their kind (test_transformers)."""
    models = {settings["model"]["name"] for _, settings in CASES.values()}
    assert models == set(plugins.available("models")) - {"transformers"}
    assert {spec.task for spec, _ in CASES.values()} == set(plugins.task_names())
    optimizers = {settings.get("optimizer", {"name": "adamw"})["name"] for _, settings in CASES.values()}
    assert optimizers == set(GRAPH_OPTIMIZERS)
    augmentations = set(CASES["cnn, all augmentations"][1]["augment"])
    assert augmentations == set(Augment.model_fields)


@pytest.mark.parametrize("case", CASES)
def test_no_step_of_a_shipped_part_reads_a_number(tmp_path: Path, case: str) -> None:
    spec, settings = CASES[case]
    drawn_split = drawn(spec)
    split = Split(drawn_split.inputs.to(META), drawn_split.targets.to(META))
    training = trainer(tmp_path, settings, RecordedGraph(), spec=spec, split=split, device=META)
    passes = training._passes
    assert isinstance(passes, GraphedPasses)
    passes._passes.__dict__["_step_optimizer"] = lambda: None  # torch's fused kernels need a device
    passes.begin_epoch(0, training._batches.epoch(0))
    passes._compute()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta tensor"):
        training.state.loss_sum.item()
