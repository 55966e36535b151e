"""Samples ready for a model, a batch at a time: the same bits from memory and from the shards, by any threads.

Small data is in memory, normalised, on the device. Large data stays in the shards, which are mapped: threads gather the
rows of the next batches while the model computes, and a batch is normalised when it is on the device.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import numpy as np

from workflow_lib.data.manifest import PREPARE_AGAIN, Manifest, Shard
from workflow_lib.data.prefetch import prefetch
from workflow_lib.data.shard import ShardContent, is_whole, map_shard, read_shard
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Batch: TypeAlias = "tuple[Tensor, Tensor]"  # inputs and targets
Rows: TypeAlias = "Tensor | slice"
T = TypeVar("T")

# A split is held in memory up to this part of what is free: the model needs some, too, on a GPU most of it.
SHARE_OF_HOST, SHARE_OF_GPU = 0.5, 0.25
SAID_EVERY_S = 20.0

log = logging.getLogger(__name__)


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
    def index_device(self) -> torch.device:
        """Where numbers of rows are best kept."""
        return self.targets.device

    def batch(self, rows: Rows) -> Batch:
        """Inputs and targets of these rows, on the device; tokens are int64 here."""
        if isinstance(rows, slice):
            inputs, targets = self.inputs[rows], self.targets[rows]
        else:
            rows = rows.to(self.index_device)
            inputs, targets = self.inputs.index_select(0, rows), self.targets.index_select(0, rows)
        return (inputs if inputs.is_floating_point() else inputs.long()), targets

    def stream(self, many: Iterable[Rows]) -> Generator[Batch]:
        """The batches of these rows, one after the other; close it when it is left early."""
        return (self.batch(rows) for rows in many)


class MappedSplit:
    """Samples in their shards: the same as `Split`, but for `inputs`, which nobody has as a whole.

    Targets are in memory, on the CPU. A stream is read ahead by `workers` threads, which end with it.
    """

    def __init__(self, manifest: Manifest, shards: Sequence[ShardContent], device: torch.device, workers: int) -> None:
        import torch

        self._normal = Normal(manifest, device)
        self._parts = [shard.inputs for shard in shards]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        self._device, self._workers = device, workers
        targets = [torch.from_numpy(np.array(shard.targets)) for shard in shards]
        self.targets = standardise(manifest, torch.cat(targets))

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def index_device(self) -> torch.device:
        """Where numbers of rows are best kept."""
        return self.targets.device

    def batch(self, rows: Rows) -> Batch:
        """Inputs and targets of these rows, on the device; tokens are int64 here."""
        return self._on_device(self._gathered(rows))

    def stream(self, many: Iterable[Rows]) -> Generator[Batch]:
        """The batches of these rows, one after the other; close it when it is left early."""
        with closing(prefetch(self._gathered, many, self._workers)) as gathered:
            for batch in gathered:
                yield self._on_device(batch)

    def _gathered(self, rows: Rows) -> Batch:
        """The rows in memory; on the CPU they are normalised, too."""
        import torch

        numbers = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows.cpu().numpy()
        shape, kind = (len(numbers), *self._parts[0].shape[1:]), self._parts[0].dtype
        is_cuda = self._device.type == "cuda"
        inputs = torch.empty(shape, dtype=getattr(torch, kind.name), pin_memory=is_cuda)
        self._take(numbers, inputs.numpy())
        targets = self.targets.index_select(0, torch.from_numpy(numbers))
        if is_cuda:
            targets = targets.pin_memory()
        return (self._normal(inputs) if self._device.type == "cpu" else inputs), targets

    def _take(self, rows: np.ndarray, into: np.ndarray) -> None:
        of_part = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(of_part, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(of_part[order])) + 1):
            part = int(of_part[places[0]])
            into[places] = self._parts[part][rows[places] - self._starts[part]]

    def _on_device(self, batch: Batch) -> Batch:
        if self._device.type == "cpu":
            return batch
        inputs, targets = (one.to(self._device, non_blocking=self._device.type == "cuda") for one in batch)
        return self._normal(inputs), targets


def load_split(
    manifest: Manifest,
    split: str,
    work: Path,
    device: str = "cpu",
    *,
    in_memory: bool | Literal["auto"] = "auto",
    workers: int = 2,
    ranks: Ranks | None = None,
    processes: int = 1,
    tick: Callable[[], object] = lambda: None,
) -> Split | MappedSplit:
    """A split, verified once; a damaged shard is an error that says how to mend it.

    `auto` holds it in memory if it takes no more than a part of what is free, shared by the processes of the node. In
    mapped shards each of the ranks verifies its part; the training waits for all of them before its first step. `tick`
    is called after each shard.
    """
    import torch

    where, shards = torch.device(device), [shard for shard in manifest.shards if shard.split == split]
    folder, size = work / "data" / manifest.store, _bytes_in_memory(manifest, split)
    if in_memory == "auto":
        in_memory = size <= room(where, processes)
    if in_memory:
        log.info("%s: %s in memory, on %s", split, _shown(size), where)
        return _in_memory(manifest, folder, shards, where, workers, tick)
    log.info("%s: %s are read from %d shards by %d threads", split, _shown(size), len(shards), workers)
    mapped = _mapped(folder, shards)
    ranks = ranks or Ranks()
    _verify(folder, shards[ranks.rank :: ranks.world_size], mapped[ranks.rank :: ranks.world_size], workers, tick)
    return MappedSplit(manifest, mapped, where, workers)


def map_split(manifest: Manifest, split: str, work: Path) -> MappedSplit:
    """A split to look at a few samples of it, on the CPU: the content of its shards is not verified."""
    import torch

    shards = [shard for shard in manifest.shards if shard.split == split]
    return MappedSplit(manifest, _mapped(work / "data" / manifest.store, shards), torch.device("cpu"), workers=0)


def room(device: torch.device, processes: int) -> float:
    """Bytes that a split may take in the memory of the device, where so many processes share the host's."""
    from workflow_lib.runtime.memory import free_bytes

    if device.type == "cuda":
        return SHARE_OF_GPU * free_bytes(device)
    return SHARE_OF_HOST * free_bytes(device) / processes


def _bytes_in_memory(manifest: Manifest, split: str) -> int:
    """What the inputs of a split take in memory: float32, but tokens as they are stored."""
    each = np.dtype(manifest.dtype).itemsize if manifest.task == "language" else 4
    return manifest.splits[split].samples * math.prod(manifest.input_shape) * each


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _in_memory(
    manifest: Manifest,
    folder: Path,
    shards: Sequence[Shard],
    device: torch.device,
    workers: int,
    tick: Callable[[], object],
) -> Split:
    import torch

    samples = sum(shard.stop - shard.start for shard in shards)
    kind = getattr(torch, manifest.dtype) if manifest.task == "language" else torch.float32
    inputs = torch.empty((samples, *manifest.input_shape), dtype=kind, device=device)
    shape, kind = _target(manifest)
    targets, normal = torch.empty((samples, *shape), dtype=kind, device=device), Normal(manifest, device)
    with closing(prefetch(lambda shard: _checked(folder / shard.name, shard, read_shard), shards, workers)) as read:
        for shard, stored in zip(shards, _told(read, len(shards), tick), strict=True):
            part = slice(shard.start, shard.stop)
            inputs[part] = normal.kept(torch.from_numpy(stored.inputs).to(device))
            targets[part] = standardise(manifest, torch.from_numpy(stored.targets).to(device))
    return Split(inputs, targets)


def _mapped(folder: Path, shards: Sequence[Shard]) -> list[ShardContent]:
    return [_checked(folder / shard.name, shard, map_shard) for shard in shards]


def _checked(path: Path, shard: Shard, read: Callable[[Path], ShardContent | None]) -> ShardContent:
    stored = read(path)
    if stored is None or stored.digest != shard.digest:
        raise DataError(f"{path}: the shard is damaged or missing; {PREPARE_AGAIN}")
    return stored


def _verify(
    folder: Path, shards: Sequence[Shard], mapped: Sequence[ShardContent], workers: int, tick: Callable[[], object]
) -> None:
    with closing(prefetch(is_whole, mapped, workers)) as answers:
        for shard, whole in zip(shards, _told(answers, len(shards), tick), strict=True):
            if not whole:
                raise DataError(f"{folder / shard.name}: the shard is damaged or missing; {PREPARE_AGAIN}")


def _told(results: Iterable[T], total: int, tick: Callable[[], object]) -> Iterator[T]:
    """The same results, each with a tick; now and then the log says how far they are."""
    said = time.monotonic()
    for number, result in enumerate(results, 1):
        yield result
        tick()
        if time.monotonic() - said > SAID_EVERY_S:
            said = time.monotonic()
            log.info("%d of %d shards verified", number, total)


def _target(manifest: Manifest) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and type of the target of one sample."""
    import torch

    if manifest.task == "regression":
        return (len(manifest.target_mean),), torch.float32
    return (0,) * (manifest.task == "language"), torch.int64


class Normal:
    """Stored inputs as a model takes them; the same bits for any part of the data, wherever it is computed."""

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        import torch

        shape = (-1, *[1] * (len(manifest.input_shape) - 1))
        self._scale, self._is_language, self._has_gaps = manifest.scale, manifest.task == "language", manifest.features
        self._mean = torch.tensor(manifest.mean, dtype=torch.float32, device=device).view(shape)
        self._std = torch.tensor(manifest.std, dtype=torch.float32, device=device).view(shape)

    def __call__(self, stored: Tensor) -> Tensor:
        """Normalised float32 [n, *input_shape]; tokens as int64."""
        return stored.long() if self._is_language else self.kept(stored)

    def kept(self, stored: Tensor) -> Tensor:
        """The same, but tokens as they are stored, which take the least memory."""
        import torch

        if self._is_language:
            return stored
        normal = stored.to(torch.float32, copy=True).div_(self._scale).sub_(self._mean).div_(self._std)
        return normal.nan_to_num_(nan=0.0) if self._has_gaps else normal


def normalise(manifest: Manifest, inputs: Tensor) -> Tensor:
    """Stored inputs [n, *input_shape] as a model takes them, on their device."""
    return Normal(manifest, inputs.device)(inputs)


def standardise(manifest: Manifest, targets: Tensor) -> Tensor:
    """Stored targets as a model is to give them; `given * target_std + target_mean` are the numbers of the data."""
    import torch

    if manifest.task != "regression":
        return targets
    mean = torch.tensor(manifest.target_mean, dtype=torch.float32, device=targets.device)
    std = torch.tensor(manifest.target_std, dtype=torch.float32, device=targets.device)
    return targets.sub(mean).div_(std)
