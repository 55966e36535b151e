"""Test-time augmentation: a network that gives the mean of the probabilities of several views of each image.

A view is the image flipped, shifted, or both; the image itself is always one. Masks are moved back before the mean. The
mean is taken of probabilities in float64, and given as logits of them, so that everything that takes the outputs of a
model takes these.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import nn

from workflow_lib import tasks
from workflow_lib.errors import ConfigError

if TYPE_CHECKING:
    from workflow_lib.config.experiment import Views
    from workflow_lib.data import Manifest
    from workflow_lib.tasks.facts import Averaging


@dataclass(frozen=True)
class View:
    """One view: the image is flipped along these axes, then moved down and right by so many pixels."""

    axes: tuple[int, ...] = ()
    down: int = 0
    right: int = 0

    def of(self, images: torch.Tensor) -> torch.Tensor:
        """Return the view of the images [B, C, H, W]; pixels from outside are those of the nearest edge."""
        return self._moved(images.flip(self.axes) if self.axes else images, self.down, self.right)

    def undone(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return outputs of the pixels of the view [..., H, W] at their pixels of the image; -inf at those not seen."""
        if self.down or self.right:
            height, width = outputs.shape[-2:]
            seen = _inside(height, -self.down, outputs.device)[:, None] & _inside(width, -self.right, outputs.device)
            outputs = self._moved(outputs, -self.down, -self.right).masked_fill(~seen, -math.inf)
        return outputs.flip(self.axes) if self.axes else outputs

    def _moved(self, images: torch.Tensor, down: int, right: int) -> torch.Tensor:
        for axis, pixels in ((-2, down), (-1, right)):
            if pixels:
                size = images.shape[axis]
                rows = torch.arange(size, device=images.device) - pixels
                images = images.index_select(axis, rows.clamp(0, size - 1))
        return images


def _inside(size: int, pixels: int, device: torch.device) -> torch.Tensor:
    """Return True for each row that comes from inside of an image that is moved by so many pixels."""
    rows = torch.arange(size, device=device) - pixels
    return (rows >= 0) & (rows < size)


def views(settings: Views) -> list[View]:
    """Return the views of the settings, the image itself first: each flip with each shift."""
    axes = [axis for axis, is_set in ((-1, settings.flip_horizontal), (-2, settings.flip_vertical)) if is_set]
    flips = [chosen for length in range(len(axes) + 1) for chosen in itertools.combinations(axes, length)]
    far = settings.shift
    shifts = [(0, 0), *([(far, 0), (-far, 0), (0, far), (0, -far)] if far else [])]
    return [View(flip, *shift) for flip in flips for shift in shifts]


@final
class Averaged(nn.Module):
    """The network, with outputs whose probabilities are the mean over the views of its inputs."""

    def __init__(self, network: nn.Module, chosen: list[View], averaging: Averaging, *, is_of_pixels: bool) -> None:
        super().__init__()
        self.network, self._views, self._averaging, self._is_of_pixels = network, chosen, averaging, is_of_pixels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mean outputs, float32, of the images [B, C, H, W]."""
        total = self._log_shares(images, self._views[0])
        for view in self._views[1:]:
            total = torch.logaddexp(total, self._log_shares(images, view))
        # of the sum, not of the mean: the number of views is a factor of all classes, which logits do not have
        return self._averaging.outputs(total).float()

    def _log_shares(self, images: torch.Tensor, view: View) -> torch.Tensor:
        shares = self._averaging.log_shares(self.network(view.of(images)).double())
        return view.undone(shares) if self._is_of_pixels else shares


def with_views(network: nn.Module, manifest: Manifest, settings: Views) -> nn.Module:
    """Return the network that averages over the views of the settings; the network itself if there is one view only.

    Raises ConfigError if the inputs are no images that are larger than the shift, or the task has no probabilities.
    """
    if len(chosen := views(settings)) == 1:
        return network
    task, shape = tasks.load(manifest.task), manifest.spec.input_shape
    if task.averaging is None or len(shape) != 3 or settings.shift >= min(shape[1:]):
        what = f"inputs of shape {list(shape)} in the task {manifest.task}"
        raise ConfigError(
            f"evaluate.tta: views are of images that are larger than the shift, with classes, labels or masks; the data"
            f" has {what}"
        )
    return Averaged(network, chosen, task.averaging, is_of_pixels=task.answers == "pixel")
