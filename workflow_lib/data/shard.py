"""The file format of a shard: inputs, targets, and the digest of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workflow_lib.data.arrays import map_arrays, write_arrays
from workflow_lib.data.source import content_digest
from workflow_lib.files import open_regular


@dataclass(frozen=True)
class ShardContent:
    """The arrays of a shard, and the digest that its file gives for them."""

    inputs: np.ndarray
    targets: np.ndarray
    digest: str


def read_shard(path: Path) -> ShardContent | None:
    """Return the content of a shard, verified; None if the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular(path):  # safe_open would follow a link and wait for a pipe
            pass
        with safe_open(path, framework="numpy") as file:
            inputs, targets = file.get_tensor("inputs"), file.get_tensor("targets")
            digest = (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None
    return ShardContent(inputs, targets, digest) if digest == content_digest(inputs, targets) else None


def write_shard(path: Path, inputs: np.ndarray, targets: np.ndarray) -> None:
    """Write a shard as a safetensors file, atomically and without copying the arrays."""
    # larger types first, as int64 targets: then every array is aligned to the size of its type
    arrays = sorted((("targets", targets), ("inputs", inputs)), key=lambda named: -named[1].dtype.itemsize)
    write_arrays(path, dict(arrays), content_digest(inputs, targets))


def map_shard(path: Path) -> ShardContent | None:
    """Return a shard whose arrays are mapped from the file; None if the file is missing or truncated.

    The content is not verified: `is_whole` does that.
    """
    arrays, digest = map_arrays(path) or ({}, "")
    if not {"inputs", "targets"} <= set(arrays):
        return None
    return ShardContent(arrays["inputs"], arrays["targets"], digest)


def is_whole(stored: ShardContent) -> bool:
    """Return True if the content matches its digest. Reads all of it once, and does not keep it in memory."""
    return stored.digest == content_digest(stored.inputs, stored.targets)


class ShardRows:
    """The samples of a split in mapped shards. Their targets are in memory, except masks (`has_masks`)."""

    def __init__(self, shards: Sequence[ShardContent], *, has_masks: bool = False) -> None:
        self._shards = [shard.inputs for shard in shards]
        self._starts = np.cumsum([0, *(len(inputs) for inputs in self._shards)])
        self._masks = [shard.targets for shard in shards] if has_masks else None
        whole = [] if has_masks else [np.asarray(shard.targets) for shard in shards]
        self.all_targets = np.concatenate(whole) if whole else np.empty(0)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def copy(self, places: np.ndarray, target: np.ndarray) -> None:
        """Copy the inputs at these places into the target."""
        self._copy(self._shards, places, target)

    def _copy(self, mapped: Sequence[np.ndarray], places: np.ndarray, target: np.ndarray) -> None:
        shard_of = np.searchsorted(self._starts, places, side="right") - 1
        order = np.argsort(shard_of, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(shard_of[order])) + 1):  # one copy for each shard
            shard = int(shard_of[group[0]])
            target[group] = mapped[shard][places[group] - self._starts[shard]]

    def targets(self, places: np.ndarray) -> np.ndarray:
        """Return the targets at these places, as stored."""
        if self._masks is None:
            return self.all_targets[places]
        masks = np.empty((len(places), *self._masks[0].shape[1:]), self._masks[0].dtype)
        self._copy(self._masks, places, masks)
        return masks
