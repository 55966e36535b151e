"""Statistics of tensors, of one rank or of the shards of all ranks together; the memory that this needs is bounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch

from workflow_lib.results.summaries import BINS, bounds

AT_ONCE = 1 << 22  # values; as float64 32 MiB

Gather = Callable[[torch.Tensor], list[torch.Tensor]]


def statistics(tensors: Mapping[str, torch.Tensor], all_gather: Gather | None = None) -> dict[str, torch.Tensor]:
    """Return for each tensor what `results.summaries` writes, float64 on the CPU.

    With ``all_gather`` the tensors are shards, and the statistics are of those of all ranks; a collective.
    """
    if not tensors:
        return {}
    gather = all_gather or (lambda value: [value])
    moments = torch.stack(gather(torch.stack([_moments(tensor) for tensor in tensors.values()])))
    sums, lows, highs = moments[..., [0, 1, 4, 5]].sum(0), moments[..., 2].amin(0), moments[..., 3].amax(0)
    # without a finite value in any shard
    lows, highs = (torch.where(value.isfinite(), value, 0.0) for value in (lows, highs))
    counts = torch.stack(
        gather(
            torch.stack(
                [
                    _counts(tensor, low, high)
                    for tensor, low, high in zip(tensors.values(), lows.tolist(), highs.tolist(), strict=True)
                ]
            )
        )
    ).sum(0)
    rows = torch.cat((sums[:, :2], lows[:, None], highs[:, None], sums[:, 2:], counts), dim=1)
    return dict(zip(tensors, rows, strict=True))


def _moments(tensor: torch.Tensor) -> torch.Tensor:
    """Return the numbers of finite and other values, the smallest, the largest, the sum, and the sum of squares."""
    found = torch.tensor([0.0, 0.0, math.inf, -math.inf, 0.0, 0.0], dtype=torch.float64)
    for every, finite in _chunks(tensor):
        found[0] += len(finite)
        found[1] += every - len(finite)
        if len(finite):
            low, high = finite.aminmax()
            sums = torch.stack((low, high, finite.sum(), finite.square().sum())).cpu()
            found[2], found[3] = torch.minimum(found[2], sums[0]), torch.maximum(found[3], sums[1])
            found[4:] += sums[2:]
    return found


def _counts(tensor: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return the number of values in each bin, float64 [BINS]. Sums of whole numbers do not depend on their order."""
    low, high = bounds(low, high)
    total = torch.zeros(BINS, dtype=torch.float64)
    for _, finite in _chunks(tensor):
        places = ((finite - low) / (high - low) * BINS).clamp(0, BINS - 1).int()
        total += torch.bincount(places, minlength=BINS).cpu()
    return total


def _chunks(tensor: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the number of values of each part of a tensor, and the finite ones as float64."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    for part in tensor.reshape(-1).split(AT_ONCE):
        values = part.double()
        yield len(values), values[values.isfinite()]
