"""A few samples of a split to look at, as NumPy arrays: without torch, which takes a second to import."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workflow_lib.data.in_place import SplitRows
from workflow_lib.data.loader import mapped_rows
from workflow_lib.data.manifest import Manifest
from workflow_lib.data.shard import ShardRows


class SplitView:
    """Samples of a split by their numbers, on the CPU; their shards are not verified."""

    def __init__(self, manifest: Manifest, rows: ShardRows | SplitRows) -> None:
        self._manifest, self._rows = manifest, rows

    def __len__(self) -> int:
        return len(self._rows)

    def stored(self, number: int) -> np.ndarray:
        """Return the input of a sample as it is stored, before normalisation."""
        inputs = np.empty((1, *self._manifest.input_shape), self._manifest.dtype)
        self._rows.copy(np.array([number]), inputs)
        return inputs[0]

    def normalised(self, number: int) -> np.ndarray:
        """Return the input of a sample as `Normalisation` gives it to models, float32; not for texts."""
        manifest, shape = self._manifest, (-1, *[1] * (len(self._manifest.input_shape) - 1))
        mean, std = (np.array(values, np.float32).reshape(shape) for values in (manifest.mean, manifest.std))
        normal: np.ndarray = (self.stored(number).astype(np.float32) / np.float32(manifest.scale) - mean) / std
        return np.nan_to_num(normal, nan=0.0, posinf=np.inf, neginf=-np.inf) if manifest.features else normal

    def target(self, number: int) -> np.ndarray:
        """Return the target of a sample as `standardise` gives it to models."""
        manifest = self._manifest
        target: np.ndarray = self._rows.targets(np.array([number]))[0]
        if manifest.kind != "numbers":
            return target
        return (target - np.array(manifest.target_mean, np.float32)) / np.array(manifest.target_std, np.float32)


def view_split(manifest: Manifest, split: str, work: Path) -> SplitView:
    """Return a split for looking at a few samples. Raises DataError if its data was deleted."""
    return SplitView(manifest, mapped_rows(manifest, split, work))
