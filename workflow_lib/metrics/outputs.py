"""Outputs of a trained model for a split, batch by batch."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from workflow_lib.errors import EverstepError

if TYPE_CHECKING:
    import numpy as np
    from torch import device, nn

    from workflow_lib.data import MappedSplit, Split


def predict(network: nn.Module, split: Split | MappedSplit, batch_size: int, where: device) -> np.ndarray:
    """Return the outputs for each sample of the split, float32 [n, outputs].

    Raises EverstepError if some are not finite.
    """
    import torch

    network = network.to(where).eval()
    with torch.inference_mode(), closing(split.stream(slices(len(split), batch_size))) as batches:
        outputs = torch.cat([network(inputs.to(where)).float().cpu() for inputs, _ in batches]).numpy()
    check_finite(outputs)
    return outputs


def slices(samples: int, size: int) -> list[slice]:
    """Return the rows of each batch."""
    return [slice(first, min(first + size, samples)) for first in range(0, samples, size)]


def check_finite(outputs: np.ndarray) -> None:
    """Raise EverstepError if the outputs [n, any] of a sample are not finite."""
    import numpy as np

    bad = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
    if len(bad):
        raise EverstepError(
            f"the model gives no finite number for {len(bad)} of {len(outputs)} test samples "
            f"(first: sample {bad[0]}): the training diverged; try a lower optimizer.lr or training.clip_norm"
        )
