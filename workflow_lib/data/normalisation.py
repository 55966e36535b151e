"""Convert stored values to model inputs: the same bits for any part of the data, on the host and on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workflow_lib.data.manifest import Manifest
from workflow_lib.plugins import Targets

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Normalisation:
    """Normalises stored inputs with the mean and standard deviation of the manifest, on one device."""

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        import torch

        shape = (-1, *[1] * (len(manifest.input_shape) - 1))
        self._scale, self._has_tokens, self._has_gaps = manifest.scale, manifest.has_tokens, manifest.features
        self._mean = torch.tensor(manifest.mean, dtype=torch.float32, device=device).view(shape)
        self._std = torch.tensor(manifest.std, dtype=torch.float32, device=device).view(shape)

    def __call__(self, stored: Tensor) -> Tensor:
        """Return normalised float32 [n, *input_shape]; texts: tokens as int64."""
        return stored.long() if self._has_tokens else self.compact(stored)

    def compact(self, stored: Tensor) -> Tensor:
        """Return normalised float32; texts: tokens in their stored type, which takes less memory than int64."""
        import torch

        if self._has_tokens:
            return stored
        normal = stored.to(torch.float32, copy=True).div_(self._scale).sub_(self._mean).div_(self._std)
        return normal.nan_to_num_(nan=0.0) if self._has_gaps else normal


def normalise(manifest: Manifest, inputs: Tensor) -> Tensor:
    """Return the model inputs for stored inputs [n, *input_shape], on the same device."""
    return Normalisation(manifest, inputs.device)(inputs)


def standardise(manifest: Manifest, targets: Tensor) -> Tensor:
    """Return the targets in the units that a model predicts; `predicted * target_std + target_mean` is the inverse."""
    import torch

    if manifest.kind != "numbers":
        return targets
    mean = torch.tensor(manifest.target_mean, dtype=torch.float32, device=targets.device)
    std = torch.tensor(manifest.target_std, dtype=torch.float32, device=targets.device)
    return targets.sub(mean).div_(std)


def target_layout(manifest: Manifest) -> tuple[tuple[int, ...], torch.dtype]:
    """Return shape and type of the target of one sample."""
    import torch

    layouts: dict[Targets, tuple[tuple[int, ...], torch.dtype]] = {
        "classes": ((), torch.int64),
        "labels": ((len(manifest.classes),), torch.uint8),
        "numbers": ((len(manifest.target_mean),), torch.float32),
        "masks": (manifest.input_shape[1:], torch.uint8),
        "tokens": ((0,), torch.int64),
    }
    return layouts[manifest.kind]
