"""Test-time augmentation: probabilities are the mean over views, each undone for masks; the image itself is one."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from workflow_lib import config, tasks
from workflow_lib.config.experiment import Views
from workflow_lib.errors import ConfigError
from workflow_lib.evaluation.views import views, with_views
from workflow_lib.plan import section_digest

ALL = Views(flip_horizontal=True, flip_vertical=True, shift=1)
TABLE = {"name": "table", "params": {"path": "x.csv", "target": "y"}}


def averaged(network: nn.Module, task: str, settings: Views, shape: tuple[int, ...] = (1, 5, 4)) -> nn.Module:
    """The network with views, for data of this task and shape."""
    manifest: Any = SimpleNamespace(task=task, spec=SimpleNamespace(input_shape=shape))
    return with_views(network, manifest, settings)


class Linear(nn.Module):
    """Three logits of an image, which depend on where its pixels are; large, so that probabilities nearly vanish."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return images.flatten(1) @ torch.randn(20, 3) * 20


class Local(nn.Module):
    """Logits of two classes for each pixel, of the pixel alone or also of its place in the image."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self._slope = slope

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        places = torch.arange(math.prod(images.shape[2:])).view(images.shape[2:]) * self._slope
        return torch.cat((images + places, -images), 1)


def images() -> torch.Tensor:
    return torch.randn(2, 1, 5, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("task", "probabilities"), [("classification", lambda x: x.softmax(1)), ("multilabel", torch.sigmoid)]
)
def test_the_probabilities_are_the_mean_over_the_views(task: str, probabilities: Any) -> None:
    given = images()
    network = averaged(Linear(), task, Views(flip_horizontal=True, flip_vertical=True))
    flipped = [given, given.flip(-1), given.flip(-2), given.flip(-1, -2)]
    expected = torch.stack([probabilities(Linear()(view).double()) for view in flipped]).mean(0)
    torch.testing.assert_close(probabilities(network(given).double()), expected, rtol=1e-5, atol=1e-30)
    single = averaged(Linear(), task, Views(shift=1))(given)
    moved = [given, *(given[:, :, rows][..., columns] for rows, columns in SHIFTED)]
    expected = torch.stack([probabilities(Linear()(view).double()) for view in moved]).mean(0)
    torch.testing.assert_close(probabilities(single.double()), expected, rtol=1e-5, atol=1e-30)


DOWN, UP, RIGHT, LEFT = [0, 0, 1, 2, 3], [1, 2, 3, 4, 4], [0, 0, 1, 2], [1, 2, 3, 3]
ROWS, COLUMNS = list(range(5)), list(range(4))
SHIFTED = [(DOWN, COLUMNS), (UP, COLUMNS), (ROWS, RIGHT), (ROWS, LEFT)]


def test_masks_are_moved_back_and_a_pixel_counts_in_the_views_that_see_it() -> None:
    given, alone = images(), Local(0.0)
    assert len(views(ALL)) == 20
    torch.testing.assert_close(
        averaged(alone, "segmentation", ALL)(given).softmax(1), alone(given).softmax(1), rtol=1e-6, atol=1e-7
    )
    placed = Local(0.1)
    network = averaged(placed, "segmentation", Views(flip_vertical=True))
    expected = (placed(given).softmax(1) + placed(given.flip(-2)).flip(-2).softmax(1)) / 2
    torch.testing.assert_close(network(given).softmax(1), expected, rtol=1e-6, atol=1e-7)


def test_without_views_the_network_is_the_model_itself_and_digests_are_those_of_before() -> None:
    network = Linear()
    assert averaged(network, "classification", Views()) is network
    before = "f2ec537eb9697a8c3dd2b6b1b9858da0"  # of the settings before there were views
    assert section_digest(config.load([{"name": "a"}]), "evaluate") == before
    assert section_digest(config.load([{"name": "a"}], ["evaluate.tta.shift=1"]), "evaluate") != before


@pytest.mark.parametrize(
    ("experiment", "setting", "told"),
    [
        ({}, "evaluate.tta.shift=8", "8 pixels move an image of 8x8 out of sight; allowed: at most 7"),
        (
            {"data": TABLE, "model": {"name": "tabular"}},
            "evaluate.tta.flip_vertical=true",
            "true is for images",
        ),
    ],
)
def test_views_of_other_data_are_rejected(experiment: dict[str, Any], setting: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"evaluate\.tta\.\w+: {told}"):
        config.load([{"name": "a", **experiment}], [setting])


def test_a_task_without_probabilities_and_inputs_that_are_no_images_are_rejected_with_the_data() -> None:
    for task, shape in (("regression", (1, 5, 4)), ("classification", (5,)), ("classification", (1, 1, 4))):
        with pytest.raises(ConfigError, match=r"evaluate\.tta: views are of images that are larger than the shift"):
            averaged(Linear(), task, ALL, shape)
    assert tasks.load("regression").averaging is None
