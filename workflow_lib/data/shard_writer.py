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
from workflow_lib.data.source import Source, read_rows
from workflow_lib.data.splits import Part
from workflow_lib.data.statistics import Moments
from workflow_lib.errors import DataError


def _cuts(parts: Mapping[str, Part], samples: int, made_by: Mapping[str, Any], source: Source) -> list[Shard]:
    """The shards to make, without the digests of their content."""
    cuts = []
    for split, part in parts.items():
        digests, rows_in_all = source.row_digests.get(part.origin), len(source.targets[part.origin])
        if digests is not None and len(digests) != rows_in_all:
            given = f"Source.row_digests has {len(digests)} for `{part.origin}`"
            raise DataError(f"{given}; allowed: one for each of its {rows_in_all} rows")
        for start in range(0, len(part.rows), samples):
            rows = part.rows[start : start + samples]
            files = [str(digests[row]) for row in rows] if digests is not None else []
            made_from = config.digest({**made_by, "files": files}, "everstep-shard") if files else ""
            cuts.append(Shard(split=split, start=start, stop=start + len(rows), digest="", made_from=made_from))
    return cuts


def in_turn(source: Source) -> Source:
    """The source, which threads may read at once: if it did not say so itself, each waits for the one before."""
    if source.is_thread_safe:
        return source
    turn, read = Lock(), source.read

    def alone(split: str, rows: np.ndarray) -> np.ndarray:
        with turn:
            return read(split, rows)

    return replace(source, read=alone)


@dataclass(frozen=True)
class PreparedShard:
    """A shard that lies in the store, verified; what it adds to the statistics, if it is of train."""

    stored: ShardContent
    is_new: bool
    digests: np.ndarray  # of each sample
    moments: Moments
    target_moments: Moments


def _ensured(shard: Shard, folder: Path, source: Source, parts: Mapping[str, Part], first: np.ndarray) -> PreparedShard:
    """The shard, as it is where it is whole and has these targets, here or in earlier data, else made again."""
    path, part = folder / shard.name, parts[shard.split]
    targets = part.targets[shard.start : shard.stop]
    if shard.made_from and not path.exists():
        _take_over(path)
    stored = map_shard(path)
    is_new = stored is None or not _fits(stored, first, targets) or not is_whole(stored)
    if is_new:
        _make(path, source, part, shard, first)
        stored = map_shard(path)
    if stored is None:
        raise DataError(f"{path}: gone or changed while the data is prepared; leave the folder alone, and run again")
    moments, target_moments = _moments(source, first, targets)
    if shard.split == "train":
        moments.add(stored.inputs)
        target_moments.add(stored.targets)
    return PreparedShard(stored, is_new, row_digests(stored.inputs), moments, target_moments)


def _take_over(path: Path) -> None:
    """The shard is linked from earlier data that is complete and has one of this name, made from the same."""
    for other in path.parent.parent.glob(f"*/{path.name}"):
        if not (other.parent / "manifest.json").exists():
            continue  # its files may have changed while they were read: that is looked at last
        with suppress(OSError):  # gone in this moment, or a disk without links: it is made anew
            os.link(other, path)
            return


def _moments(source: Source, first: np.ndarray, targets: np.ndarray) -> tuple[Moments, Moments]:
    """Statistics of nothing yet: of the inputs, by channel, and of the targets of a regression, by output."""
    channels = 0 if source.task == "language" else first.shape[1]
    return Moments(channels), Moments(targets.shape[1] if source.task == "regression" else 0)


def _make(path: Path, source: Source, part: Part, shard: Shard, first: np.ndarray) -> None:
    """The shard is written, whole."""
    rows, targets = part.rows[shard.start : shard.stop], part.targets[shard.start : shard.stop]
    inputs = read_rows(source, part.origin, rows)
    if (inputs.dtype, inputs.shape[1:]) != (first.dtype, first.shape[1:]):
        raise DataError(
            f"{shard.split} samples {shard.start} to {shard.stop} are {inputs.dtype} {inputs.shape[1:]}, "
            f"the first of train is {first.dtype} {first.shape[1:]}; all inputs have one shape"
        )
    write_shard(path, inputs, targets)


def _fits(stored: ShardContent, first: np.ndarray, targets: np.ndarray) -> bool:
    is_alike = (stored.inputs.dtype, stored.inputs.shape[1:]) == (first.dtype, first.shape[1:])
    return is_alike and len(stored.inputs) == len(targets) and np.array_equal(stored.targets, targets)


def _refuse_changed(source: Source, made: Sequence[Path]) -> None:
    changed = [file.path for file in source.files if not file.is_unchanged()]
    if changed:
        for path in made:
            path.unlink()
        raise DataError(f"{changed[0]}: changed while it was being read; run again when it is complete")
