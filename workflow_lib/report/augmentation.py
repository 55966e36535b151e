"""The chapter on augmentation: training images above their augmented versions."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib.report import samples
from workflow_lib.results.read_runs import Row

if TYPE_CHECKING:
    import numpy as np
    import torch

    from workflow_lib.data import Manifest
    from workflow_lib.plan import RunConfig

IMAGES = 8  # originals, and as many augmented versions
MAX_PIXELS = 96  # a side of each


def augmentation(config: RunConfig, manifest: Manifest, work: Path) -> Row | None:
    """Return a picture of training images above their versions in the run's first epoch, or None without augmentation.

    The images are spaced evenly over the training split.
    """
    if not any(dict(config.augment).values()) or samples.opened(manifest, "train", work) is None:
        return None
    import torch

    from workflow_lib.data import map_split
    from workflow_lib.training.augment import augmented, epoch_key, mixing_partners

    split = map_split(manifest, "train", work)
    rows = torch.arange(IMAGES) * len(split) // IMAGES
    key = epoch_key(config.seed, 0)
    others = mixing_partners(config.augment, rows, key=key, samples=len(split))
    inputs, targets = split.batch(rows if others is None else torch.cat((rows, others)))
    changed, *_ = augmented(config.augment, inputs, targets, rows, others, key=key)
    pixels = _tiled(torch.stack((inputs[:IMAGES], changed)), manifest)
    return {"image": _png(pixels), "seed": config.seed}


def _tiled(images: torch.Tensor, manifest: Manifest) -> np.ndarray:
    """Return one image [height, width, 1 or 3] of two rows, from normalised images [2, n, channels, height, width].

    The darkest and the lightest value of the originals become black and white.
    """
    import torch
    from torch.nn.functional import pad

    every = math.ceil(max(manifest.input_shape[1:]) / MAX_PIXELS)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (manifest.mean, manifest.std))
    images = images[..., ::every, ::every] * std + mean
    images = images[:, :, :3] if images.shape[2] >= 3 else images[:, :, :1]
    low, high = images[0].aminmax()
    images = pad(((images - low) / (high - low).clamp_min(1e-6)).clamp(0, 1), (1, 1, 1, 1), value=1.0)
    tiles = images.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    pixels: np.ndarray = (tiles * 255).round().to(torch.uint8).numpy()
    return pixels


def _png(pixels: np.ndarray) -> str:
    """Return the pixels [height, width, 1 or 3] as a data URL."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
