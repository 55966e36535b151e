"""Loss and metrics of masks, against torchmetrics and torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_jaccard_index

from tests.support.prepared import shapes
from workflow_lib import data, tasks
from workflow_lib.config.run import Augment, Training
from workflow_lib.data import IGNORED
from workflow_lib.errors import ConfigError, DataError
from workflow_lib.metrics import masks
from workflow_lib.metrics.bootstrap import Resampling
from workflow_lib.metrics.masks import Counts
from workflow_lib.tasks.segmentation import PixelCrossEntropy, counted
from workflow_lib.training.augment import augment, augmented, epoch_key

CPU = torch.device("cpu")


def example() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    targets = torch.randint(3, (6, 5, 7))
    targets[0, :3], targets[1] = IGNORED, IGNORED
    return torch.randn(6, 3, 5, 7), targets


def counts_of(outputs: torch.Tensor, targets: torch.Tensor) -> Counts:
    hits, predicted, true = (part.numpy() for part in counted(outputs, targets))
    return Counts(hits, predicted, true, PixelCrossEntropy(3).losses(outputs, targets).double().numpy())


def test_ignored_pixels_have_no_loss_and_no_gradient() -> None:
    outputs, targets = example()
    outputs.requires_grad_()
    objective = PixelCrossEntropy(3)
    losses = objective.losses(outputs, targets)
    objective.loss(outputs, targets).backward()
    expected = functional.cross_entropy(outputs[2:], targets[2:], reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(losses[2:], expected)
    assert losses[1].item() == 0
    assert outputs.grad is not None
    assert not outputs.grad[1].any()
    assert not outputs.grad[0, :, :3].any()
    assert outputs.grad[0, :, 3:].any()


def test_metrics_equal_those_of_torchmetrics() -> None:
    outputs, targets = example()
    measured = masks.measure(counts_of(outputs, targets), "abc", Resampling(50, 0.9, 0))
    iou = multiclass_jaccard_index(outputs.argmax(1), targets, 3, ignore_index=IGNORED)
    assert measured["metrics"]["mean_iou"]["value"] == pytest.approx(iou.item())
    is_counted = targets != IGNORED
    right = (outputs.argmax(1) == targets)[is_counted].float().mean()
    assert measured["metrics"]["pixel_accuracy"]["value"] == pytest.approx(right.item())
    for row in measured["per_class"]:
        assert row["dice"] == pytest.approx(2 * row["iou"] / (1 + row["iou"]))
    assert tuple(measured["metrics"]) == tuple(tasks.load("segmentation").metrics)
    json.dumps(measured, allow_nan=False)


def test_an_image_that_is_ignored_has_no_metric_in_the_file() -> None:
    lines = masks.predictions_csv(counts_of(*example())).splitlines()
    assert lines[0] == "sample,pixels,loss,mean_iou,dice,pixel_accuracy"
    assert lines[2] == "1,0,0.0,,,"


def test_balanced_weights_need_a_pixel_of_every_class() -> None:
    with pytest.raises(ConfigError, match="train has no pixel of class number 1"):
        tasks.load("segmentation").objective(Training(class_weights="balanced"), CPU, (5, 0, 3), ())


@pytest.mark.parametrize(
    "settings", [{"flip_horizontal": 0.5, "flip_vertical": 0.5}, {"shift": 0.3}, {"crop": 2}, {"rotation": 180}]
)
def test_a_mask_moves_with_its_image(settings: dict[str, Any]) -> None:
    """Images that are made of their masks are still made of them."""
    section, ids = Augment(**settings), torch.arange(40)
    numbers = torch.arange(4)[None, :, None].expand(40, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
    numbers = (numbers + numbers.transpose(1, 2)).contiguous()
    images = numbers[:, None].float()
    inputs, moved, mixed = augmented(section, images, numbers.to(torch.uint8), ids, None, key=epoch_key(1, 2))
    assert mixed is None
    assert moved.dtype == torch.uint8
    assert torch.equal(inputs, augment(section, images, ids, key=epoch_key(1, 2)))
    assert not torch.equal(moved.float(), images[:, 0])
    if "rotation" not in settings:
        assert torch.equal(inputs[:, 0], moved.float())
    else:  # an interpolated value is between the classes of its four neighbours
        assert ((inputs[:, 0] - moved).abs() <= 1).float().mean() > 0.99


def image_masks(images: np.ndarray, numbers: np.ndarray, folder: Path, **more: Any) -> dict[str, Any]:
    np.savez(folder / "t.npz", train_images=images, train_masks=numbers, **more)
    return {"name": "npz", "params": {"path": "t.npz", "task": "segmentation"}, "shard_samples": 7}


def test_masks_are_stored_and_read_with_their_images(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    numbers = random.integers(0, 3, (40, 5, 6)).astype(np.uint8)
    images = (numbers * 50 + random.integers(0, 9, numbers.shape)).astype(np.uint8)
    manifest = data.prepare(image_masks(images, numbers, tmp_path), tmp_path, tmp_path / "work")
    assert shapes(manifest) == data.ModelSpec((1, 5, 6), 3, "segmentation")
    assert sum(manifest.splits["train"].per_class) == manifest.splits["train"].samples * 30
    for in_memory in (True, False):
        split = data.load_split(manifest, "train", tmp_path / "work", in_memory=in_memory)
        inputs, targets = split.batch(torch.tensor([5, 0, 9]))
        stored = inputs * torch.tensor(manifest.std) * 255 + torch.tensor(manifest.mean) * 255
        assert targets.dtype == torch.uint8
        assert torch.equal((stored[:, 0].round() / 50).floor().to(torch.uint8), targets)


def test_a_changed_mask_is_other_data(tmp_path: Path) -> None:
    images, numbers = np.arange(40 * 30, dtype=np.float32).reshape(40, 5, 6), np.zeros((40, 5, 6), np.uint8)
    numbers[:, 0] = 1
    first = data.prepare(image_masks(images, numbers, tmp_path), tmp_path, tmp_path / "work")
    numbers[3, 3] = 255
    second = data.prepare(image_masks(images, numbers, tmp_path), tmp_path, tmp_path / "work")
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (np.full((8, 4, 4), 300, np.int32), r"row 0: the mask has the value 300; allowed: 0 to 254, and 255 to ignore"),
        (np.zeros((8, 4, 5), np.uint8), r"allowed: whole numbers of shape \(n, 4, 4\)"),
        (np.zeros((8, 4, 4), np.float32), "float32 of shape .*; allowed: whole numbers"),
        (np.zeros((7, 4, 4), np.uint8), "has 7 labels for 8 images"),
    ],
)
def test_masks_that_do_not_fit_are_rejected(tmp_path: Path, numbers: np.ndarray, message: str) -> None:
    images = np.random.default_rng(0).random((8, 4, 4)).astype(np.float32)
    with pytest.raises(DataError, match=message):
        data.prepare(image_masks(images, numbers, tmp_path), tmp_path, tmp_path / "work")


GROWTH = """
from pathlib import Path

import torch
from torch import nn

from workflow_lib.tasks import segmentation

BATCHES, SIZE, kib = 40, 32, []


class Split:
    def __len__(self):
        return BATCHES * SIZE

    def stream(self, batches):
        for number, _ in enumerate(batches):
            if number in (10, BATCHES - 1):
                status = Path("/proc/self/status").read_text()
                kib.append(int(status.partition("RssAnon:")[2].split()[0]))
            yield torch.zeros(SIZE, 3, 64, 64), torch.zeros(SIZE, 64, 64, dtype=torch.uint8)


torch.set_num_threads(1)
network = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 1)
)
segmentation.predict(network, Split(), SIZE, torch.device("cpu"))
print(kib[1] - kib[0])
"""


def test_the_memory_of_an_evaluation_does_not_grow_with_the_split() -> None:
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16 << 10
