"""Samples ready for a model: the same bits in any batch."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from workflow_lib.errors import DataError
from workflow_lib.shards.manifest import MEND, Manifest
from workflow_lib.shards.store import read_shard

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Batch: TypeAlias = "tuple[Tensor, Tensor]"  # inputs and targets


@dataclass(frozen=True)
class Split:
    """Samples in memory, on the device.

    inputs    normalised float32 [n, *input_shape]; language: tokens as stored [n, context + 1]
    targets   classification: class numbers int64 [n]; regression: standardised float32 [n, outputs]; language: [n, 0]
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def rows_on(self) -> torch.device:
        """Where numbers of rows are best kept."""
        return self.targets.device

    def batch(self, rows: Tensor | slice) -> Batch:
        """Inputs and targets of these rows, on the device; tokens are int64 here."""
        if isinstance(rows, slice):
            inputs, targets = self.inputs[rows], self.targets[rows]
        else:
            rows = rows.to(self.rows_on)
            inputs, targets = self.inputs.index_select(0, rows), self.targets.index_select(0, rows)
        return (inputs if inputs.is_floating_point() else inputs.long()), targets

    def stream(self, many: Iterable[Tensor | slice]) -> Generator[Batch]:
        """The batches of these rows, one after the other; close it when it is left early."""
        return (self.batch(rows) for rows in many)


def load_split(manifest: Manifest, split: str, work: Path, device: str = "cpu") -> Split:
    """A whole split in memory, each shard verified; a damaged shard is an error that says how to mend it."""
    import torch

    samples, is_language = manifest.splits[split].samples, manifest.task == "language"
    kind = getattr(torch, manifest.dtype) if is_language else torch.float32
    inputs = torch.empty((samples, *manifest.input_shape), dtype=kind, device=device)
    targets = torch.empty((samples, *target_shape(manifest)), dtype=target_type(manifest), device=device)
    for shard in (shard for shard in manifest.shards if shard.split == split):
        path = work / "data" / manifest.store / shard.name
        stored = read_shard(path)
        if stored is None or stored.digest != shard.digest:
            raise DataError(f"{path}: the shard is damaged or missing; {MEND}")
        part = slice(shard.start, shard.stop)
        inputs[part] = normalise(manifest, torch.from_numpy(stored.inputs).to(device))
        targets[part] = standardise(manifest, torch.from_numpy(stored.targets).to(device))
    return Split(inputs, targets)


def target_shape(manifest: Manifest) -> tuple[int, ...]:
    """Shape of the target of one sample."""
    return {"classification": (), "language": (0,)}.get(manifest.task, (len(manifest.target_mean),))


def target_type(manifest: Manifest) -> torch.dtype:
    """Type of the targets, as stored and as seen."""
    import torch

    return torch.float32 if manifest.task == "regression" else torch.int64


def normalise(manifest: Manifest, inputs: Tensor) -> Tensor:
    """Stored inputs [n, *input_shape] as a model takes them; the same bits for any part of the data."""
    import torch

    if manifest.task == "language":
        return inputs
    shape = (-1, *[1] * (len(manifest.input_shape) - 1))
    mean = torch.tensor(manifest.mean, dtype=torch.float32, device=inputs.device).view(shape)
    std = torch.tensor(manifest.std, dtype=torch.float32, device=inputs.device).view(shape)
    normal = inputs.to(torch.float32, copy=True).div_(manifest.scale).sub_(mean).div_(std)
    return normal.nan_to_num_(nan=0.0) if manifest.features else normal


def standardise(manifest: Manifest, targets: Tensor) -> Tensor:
    """Stored targets as a model is to give them; `given * target_std + target_mean` are the numbers of the data."""
    import torch

    if manifest.task != "regression":
        return targets
    mean = torch.tensor(manifest.target_mean, dtype=torch.float32, device=targets.device)
    std = torch.tensor(manifest.target_std, dtype=torch.float32, device=targets.device)
    return targets.sub(mean).div_(std)
