"""Write the shards that are missing or damaged; keep those that verify."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from workflow_lib import config
from workflow_lib.data.copies import row_digests
from workflow_lib.data.manifest import Shard
from workflow_lib.data.shard import ShardContent, is_whole, map_shard, write_shard
from workflow_lib.data.source import Source, read_masks, read_rows
from workflow_lib.data.splits import Part
from workflow_lib.data.statistics import Moments
from workflow_lib.errors import DataError
from workflow_lib.store import layout


def plan_shards(parts: Mapping[str, Part], samples: int, made_by: Mapping[str, Any], source: Source) -> list[Shard]:
    """Return the shards to write, of at most so many samples, without the digests of their content."""
    shards = []
    for split, part in parts.items():
        digests, total = source.row_digests.get(part.origin), len(source.targets[part.origin])
        if digests is not None and len(digests) != total:
            given = f"Source.row_digests has {len(digests)} for `{part.origin}`"
            raise DataError(f"{given}; allowed: one for each of its {total} rows")
        for start in range(0, len(part.rows), samples):
            rows = part.rows[start : start + samples]
            files = [str(digests[row]) for row in rows] if digests is not None else []
            made_from = config.digest({**made_by, "files": files}, "everstep-shard") if files else ""
            shards.append(Shard(split=split, start=start, stop=start + len(rows), digest="", made_from=made_from))
    return shards


def with_safe_read(source: Source) -> Source:
    """Return the source with a `read` that several threads may call; if it is not thread-safe, they take turns."""
    if source.is_thread_safe:
        return source
    lock, read = Lock(), source.read

    def read_alone(split: str, rows: np.ndarray) -> np.ndarray:
        with lock:
            return read(split, rows)

    masks = source.read_targets
    if masks is None:
        return replace(source, read=read_alone)

    def read_masks_alone(split: str, rows: np.ndarray) -> np.ndarray:
        with lock:
            return masks(split, rows)

    return replace(source, read=read_alone, read_targets=read_masks_alone)


@dataclass(frozen=True)
class PreparedShard:
    """A verified shard in the store, and its contribution to the statistics, which is empty outside of train."""

    stored: ShardContent
    is_new: bool
    digests: np.ndarray  # one for each sample
    moments: Moments
    target_moments: Moments


def prepare_shard(
    shard: Shard, folder: Path, source: Source, parts: Mapping[str, Part], first: np.ndarray
) -> PreparedShard:
    """Keep the shard if it is whole and has these targets, else link it from earlier data, else write it.

    Masks are not compared: like the inputs, they follow from the source files, whose digests name the folder.
    """
    path, part = folder / shard.name, parts[shard.split]
    targets = part.targets[shard.start : shard.stop]
    if shard.made_from and not path.exists():
        _link_earlier(path)
    stored = map_shard(path)
    is_new = stored is None or not _matches(stored, source, first, targets) or not is_whole(stored)
    if is_new:
        _write(path, source, part, shard, first)
        stored = map_shard(path)
    if stored is None:
        raise DataError(f"{path}: removed or changed during preprocess; leave the folder alone, and run again")
    moments, target_moments = new_moments(source, first, targets)
    if shard.split == "train":
        moments.add(stored.inputs)
        target_moments.add(stored.targets)
    return PreparedShard(stored, is_new, row_digests(stored.inputs), moments, target_moments)


def _link_earlier(path: Path) -> None:
    """Link the shard of this name from complete earlier data; an equal name means equal source files and settings."""
    for other in path.parent.parent.glob(f"*/{path.name}"):
        if not layout.store_manifest(other.parent).exists():
            continue  # incomplete: its source files may have changed while they were read, which is checked last
        with suppress(OSError):  # just removed, or a disk without hard links: the shard is written instead
            os.link(other, path)
            return


def new_moments(source: Source, first: np.ndarray, targets: np.ndarray) -> tuple[Moments, Moments]:
    """Return empty statistics: of the inputs by channel, and of the targets of a regression by output."""
    channels = 0 if source.has_tokens else first.shape[1]
    return Moments(channels), Moments(targets.shape[1] if source.kind == "numbers" else 0)


def _write(path: Path, source: Source, part: Part, shard: Shard, first: np.ndarray) -> None:
    rows, targets = part.rows[shard.start : shard.stop], part.targets[shard.start : shard.stop]
    inputs = read_rows(source, part.origin, rows)
    if (inputs.dtype, inputs.shape[1:]) != (first.dtype, first.shape[1:]):
        raise DataError(
            f"{shard.split} samples {shard.start} to {shard.stop} are {inputs.dtype} {inputs.shape[1:]}, "
            f"the first sample of train is {first.dtype} {first.shape[1:]}; all inputs must have one type and shape"
        )
    if source.kind == "masks":
        targets = read_masks(source, part.origin, rows, first.shape[2:])
    write_shard(path, inputs, targets)


def _matches(stored: ShardContent, source: Source, first: np.ndarray, targets: np.ndarray) -> bool:
    is_alike = (stored.inputs.dtype, stored.inputs.shape[1:]) == (first.dtype, first.shape[1:])
    if not is_alike or len(stored.inputs) != len(targets):
        return False
    if source.kind == "masks":
        return stored.targets.dtype == np.uint8 and stored.targets.shape == (len(targets), *first.shape[2:])
    return np.array_equal(stored.targets, targets)


def check_unchanged(source: Source, written: Sequence[Path]) -> None:
    """Remove the shards that were written and raise DataError if a source file changed in the meantime."""
    changed = [file.path for file in source.files if not file.is_unchanged()]
    if changed:
        for path in written:
            path.unlink()
        raise DataError(f"{changed[0]}: changed while it was being read; run again when it is complete")
