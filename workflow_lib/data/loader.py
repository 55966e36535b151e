"""Batches for a model, from memory or from memory-mapped shards: the same bits either way, with any number of threads.

Small data is in memory, normalised, on the device. Large data stays in the shards, which are memory-mapped: threads
gather the rows of the next batches during the computation, and each batch is normalised on the device.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import numpy as np

from workflow_lib.data.in_place import SplitRows, open_split
from workflow_lib.data.manifest import PREPARE_AGAIN, Manifest, Shard
from workflow_lib.data.normalisation import Normalisation, standardise, target_layout
from workflow_lib.data.prefetch import prefetch
from workflow_lib.data.shard import ShardContent, ShardRows, is_whole, map_shard, read_shard
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.errors import DataError
from workflow_lib.store import layout
from workflow_lib.text import byte_size, count

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Batch: TypeAlias = "tuple[Tensor, Tensor]"  # inputs and targets
Rows: TypeAlias = "Tensor | slice | Sequence[int] | np.ndarray"  # numbers of samples
T = TypeVar("T")

# Largest fraction of the free memory that a split may take. The rest is for the model, which needs most of a GPU.
SHARE_OF_HOST, SHARE_OF_GPU = 0.5, 0.25
SMALL_BYTES = 1 << 26  # data read in place is loaded into memory by `auto` up to this size
BLOCK_ROWS = 1024
LOG_INTERVAL_S = 20.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Samples in memory, on the device.

    inputs    normalised float32 [n, *input_shape]; texts: tokens as stored [n, length]; language: [n, context + 1]
    targets   classification: class numbers int64 [n]; multilabel: uint8 [n, classes]; regression: standardised float32
              [n, outputs]; segmentation: masks uint8 [n, height, width]; language: [n, 0]
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def index_device(self) -> torch.device:
        """The device on which row numbers are used without a copy."""
        return self.targets.device

    def batch(self, rows: Rows) -> Batch:
        """Return inputs and targets of these rows, on the device; tokens as int64."""
        import torch

        if isinstance(rows, slice):
            inputs, targets = self.inputs[rows], self.targets[rows]
        else:
            rows = torch.as_tensor(rows, device=self.index_device)
            inputs, targets = self.inputs.index_select(0, rows), self.targets.index_select(0, rows)
        return (inputs if inputs.is_floating_point() else inputs.long()), targets

    def stream(self, batches: Iterable[Rows]) -> Generator[Batch]:
        """Yield the batch of each element of `batches`; close the generator when leaving it early."""
        return (self.batch(rows) for rows in batches)


class MappedSplit:
    """Samples in mapped shards, or in files that are read in place: the interface of `Split`, without all `inputs`.

    A stream is read ahead by `workers` threads, which end with it.
    """

    def __init__(self, manifest: Manifest, rows: ShardRows | SplitRows, device: torch.device, workers: int) -> None:
        self._manifest, self._rows = manifest, rows
        self._normalisation = Normalisation(manifest, device)
        self._device, self._workers = device, workers

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def targets(self) -> Tensor:
        """The targets of all samples, on the CPU; masks, which are as large as the inputs, only come in batches."""
        import torch

        if self._manifest.kind == "masks":
            raise DataError("masks are read with the inputs: take them from `batch` or `stream`")

        return standardise(self._manifest, torch.from_numpy(self._rows.all_targets))

    @property
    def index_device(self) -> torch.device:
        """The device on which row numbers are used without a copy."""
        import torch

        return torch.device("cpu")

    def batch(self, rows: Rows) -> Batch:
        """Return inputs and targets of these rows, on the device; tokens as int64."""
        return self._to_device(self._gather(rows))

    def stored(self, rows: slice) -> np.ndarray:
        """Return the inputs of these rows as they are stored, before normalisation."""
        numbers = np.arange(*rows.indices(len(self)))
        inputs = np.empty((len(numbers), *self._manifest.input_shape), self._manifest.dtype)
        self._copy_rows(numbers, inputs)
        return inputs

    def stream(self, batches: Iterable[Rows]) -> Generator[Batch]:
        """Yield the batch of each element of `batches`; close the generator when leaving it early."""
        with closing(prefetch(self._gather, batches, self._workers)) as gathered:
            for batch in gathered:
                yield self._to_device(batch)

    def _gather(self, rows: Rows) -> Batch:
        """Return the rows in host memory: pinned and as stored for a GPU, normalised for the CPU."""
        import torch

        numbers = (
            np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else torch.as_tensor(rows).cpu().numpy()
        )
        is_cuda = self._device.type == "cuda"
        shape, kind = (len(numbers), *self._manifest.input_shape), getattr(torch, self._manifest.dtype)
        inputs = torch.empty(shape, dtype=kind, pin_memory=is_cuda)
        self._copy_rows(numbers, inputs.numpy())
        targets = standardise(self._manifest, torch.from_numpy(self._rows.targets(numbers)))
        if is_cuda:
            targets = targets.pin_memory()
        return (self._normalisation(inputs) if self._device.type == "cpu" else inputs), targets

    def _copy_rows(self, rows: np.ndarray, target: np.ndarray) -> None:
        self._rows.copy(rows, target)

    def _to_device(self, batch: Batch) -> Batch:
        if self._device.type == "cpu":
            return batch
        # Pinned memory lets the copy overlap with the computation.
        inputs, targets = (tensor.to(self._device, non_blocking=self._device.type == "cuda") for tensor in batch)
        return self._normalisation(inputs), targets


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
    root: Path | None = None,
) -> Split | MappedSplit:
    """Return a split whose shards were verified once. Raises DataError for a damaged or missing shard.

    Data that is read in place is verified when it is read; `root` is the folder of the project, by default the
    current one. With `auto` it is loaded into memory only if it is small.

    With `auto` the split is loaded into memory if it fits `available_bytes`; `processes` is the number of processes on
    the node. If the shards are mapped, each rank verifies its share of them, and the caller must wait for all ranks
    before the first step. `tick` is called after each shard.
    """
    import torch

    target, shards = torch.device(device), [shard for shard in manifest.shards if shard.split == split]
    folder, size = layout.store_dir(work, manifest.store), _bytes_in_memory(manifest, split)
    limit = available_bytes(target, processes)
    if manifest.in_place is not None:
        rows = open_split(manifest, manifest.in_place, split, work, root or Path.cwd())
        mapped_split = MappedSplit(manifest, rows, target, workers)
        if in_memory is True or (in_memory == "auto" and size <= min(limit, SMALL_BYTES)):
            log.info("%s: %s in memory, on %s", split, byte_size(size), target)
            return _read_into_memory(manifest, rows, target, workers, tick)
        log.info(
            "%s: read in place by %d threads, from %s", split, workers, count(len(manifest.in_place.files), "file")
        )
        return mapped_split
    if in_memory == "auto":
        in_memory = size <= limit
    if in_memory:
        log.info("%s: %s in memory, on %s", split, byte_size(size), target)
        return _load_into_memory(manifest, folder, shards, target, workers, tick)
    log.info("%s: %s are read from %d shards by %d threads", split, byte_size(size), len(shards), workers)
    mapped = _map_shards(folder, shards)
    ranks = ranks or Ranks()
    _verify(folder, shards[ranks.rank :: ranks.world_size], mapped[ranks.rank :: ranks.world_size], workers, tick)
    return MappedSplit(manifest, ShardRows(mapped, has_masks=manifest.kind == "masks"), target, workers)


def map_split(manifest: Manifest, split: str, work: Path, *, verify: bool = False) -> MappedSplit:
    """Return a split for looking at a few samples, on the CPU. Without `verify`, its shards may be damaged."""
    import torch

    return MappedSplit(manifest, mapped_rows(manifest, split, work, verify=verify), torch.device("cpu"), workers=0)


def mapped_rows(manifest: Manifest, split: str, work: Path, *, verify: bool = False) -> ShardRows | SplitRows:
    """Return the stored samples of a split, in mapped shards or in files that are read in place."""
    if manifest.in_place is not None:
        return open_split(manifest, manifest.in_place, split, work, Path.cwd())
    folder, shards = layout.store_dir(work, manifest.store), [s for s in manifest.shards if s.split == split]
    mapped = _map_shards(folder, shards)
    if verify:
        _verify(folder, shards, mapped, 0, lambda: None)
    return ShardRows(mapped, has_masks=manifest.kind == "masks")


def available_bytes(device: torch.device, processes: int) -> float:
    """Return the bytes that a split may take in the memory of the device; the processes share the host's memory."""
    from workflow_lib.runtime.memory import free_bytes

    if device.type == "cuda":
        return SHARE_OF_GPU * free_bytes(device)
    return SHARE_OF_HOST * free_bytes(device) / processes


def _bytes_in_memory(manifest: Manifest, split: str) -> int:
    """Return the size of the inputs of a split in memory, float32 or tokens as stored, and of its masks."""
    value_bytes = np.dtype(manifest.dtype).itemsize if manifest.has_tokens else 4
    mask_bytes = math.prod(manifest.input_shape[1:]) if manifest.kind == "masks" else 0
    return manifest.splits[split].samples * (math.prod(manifest.input_shape) * value_bytes + mask_bytes)


def _load_into_memory(
    manifest: Manifest,
    folder: Path,
    shards: Sequence[Shard],
    device: torch.device,
    workers: int,
    tick: Callable[[], object],
) -> Split:
    import torch

    inputs, targets = _empty(manifest, sum(shard.stop - shard.start for shard in shards), device)
    normalisation = Normalisation(manifest, device)
    with closing(prefetch(lambda shard: _content(folder, shard, read_shard), shards, workers)) as contents:
        for shard, stored in zip(shards, _with_ticks(contents, len(shards), tick), strict=True):
            part = slice(shard.start, shard.stop)
            inputs[part] = normalisation.compact(torch.from_numpy(stored.inputs).to(device))
            targets[part] = standardise(manifest, torch.from_numpy(stored.targets).to(device))
    return Split(inputs, targets)


def _read_into_memory(
    manifest: Manifest,
    rows: SplitRows,
    device: torch.device,
    workers: int,
    tick: Callable[[], object],
) -> Split:
    """Return all rows of files that are read in place, in the form of `_load_into_memory`."""
    import torch

    inputs, targets = _empty(manifest, len(rows), device)
    normalisation = Normalisation(manifest, device)
    blocks = [np.arange(start, min(start + BLOCK_ROWS, len(rows))) for start in range(0, len(rows), BLOCK_ROWS)]
    with closing(prefetch(rows.inputs, blocks, workers)) as contents:
        for block, stored in zip(blocks, contents, strict=True):
            part = slice(int(block[0]), int(block[-1]) + 1)
            inputs[part] = normalisation.compact(torch.from_numpy(stored).to(device))
            targets[part] = standardise(manifest, torch.from_numpy(rows.targets(block)).to(device))
            tick()
    return Split(inputs, targets)


def _empty(manifest: Manifest, samples: int, device: torch.device) -> Batch:
    """Return memory for so many normalised inputs, and for their targets."""
    import torch

    kind = getattr(torch, manifest.dtype) if manifest.has_tokens else torch.float32
    inputs = torch.empty((samples, *manifest.input_shape), dtype=kind, device=device)
    shape, dtype = target_layout(manifest)
    return inputs, torch.empty((samples, *shape), dtype=dtype, device=device)


def _map_shards(folder: Path, shards: Sequence[Shard]) -> list[ShardContent]:
    return [_content(folder, shard, map_shard) for shard in shards]


def _content(folder: Path, shard: Shard, read: Callable[[Path], ShardContent | None]) -> ShardContent:
    stored = read(folder / shard.name)
    if stored is None or stored.digest != shard.digest:
        raise _damaged(folder, shard)
    return stored


def _verify(
    folder: Path, shards: Sequence[Shard], mapped: Sequence[ShardContent], workers: int, tick: Callable[[], object]
) -> None:
    with closing(prefetch(is_whole, mapped, workers)) as results:
        for shard, whole in zip(shards, _with_ticks(results, len(shards), tick), strict=True):
            if not whole:
                raise _damaged(folder, shard)


def _damaged(folder: Path, shard: Shard) -> DataError:
    return DataError(f"{folder / shard.name}: the shard is damaged or missing; {PREPARE_AGAIN}")


def _with_ticks(results: Iterable[T], total: int, tick: Callable[[], object]) -> Iterator[T]:
    """Yield the results; after each, call `tick`, and log the progress every LOG_INTERVAL_S seconds."""
    logged = time.monotonic()
    for number, result in enumerate(results, 1):
        yield result
        tick()
        if time.monotonic() - logged > LOG_INTERVAL_S:
            logged = time.monotonic()
            log.info("%d of %d shards verified", number, total)
