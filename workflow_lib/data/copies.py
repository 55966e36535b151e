"""Equal inputs, found by a digest of each sample: copies across splits, and copies that have different targets."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

import numpy as np

from workflow_lib.data.source import Source, bytes_of
from workflow_lib.data.splits import Part
from workflow_lib.errors import DataError

log = logging.getLogger(__name__)


def row_digests(inputs: np.ndarray) -> np.ndarray:
    """Return 64 bits of BLAKE2b of each sample, uint64 [n]."""
    if not len(inputs):
        return np.empty(0, np.uint64)
    rows = bytes_of(np.ascontiguousarray(inputs)).cast("B")
    size = len(rows) // len(inputs)
    digests = (hashlib.blake2b(rows[at : at + size], digest_size=8).digest() for at in range(0, len(rows), size))
    return np.frombuffer(b"".join(digests), np.uint64)


def look_at(source: Source, parts: Mapping[str, Part], digests: Mapping[str, np.ndarray]) -> None:
    """Warn of samples of val and test that train has, and of equal inputs with different targets.

    Inputs of train that are all the same are rejected.
    """
    learnt = digests["train"]
    if source.task != "language" and len(learnt) > 1 and (learnt == learnt[0]).all():
        raise DataError(
            f"all {len(learnt)} inputs of train are the same, once they are prepared: there is nothing to learn from "
            "(of images, look at transparent parts, which lie on a background, and at what a crop leaves)"
        )
    known, first = np.unique(learnt, return_index=True)
    for split in ("val", "test"):
        places = np.minimum(np.searchsorted(known, digests[split]), len(known) - 1)
        copies = np.flatnonzero(known[places] == digests[split])
        if len(copies):
            one, other = copies[0], first[places[copies[0]]]
            log.warning(
                "%d of %d samples of %s are copies of samples of train (the first: %s = %s): a model is tested on what "
                "it has learnt by heart",
                len(copies), len(digests[split]), split, _named(source, parts[split], one),
                _named(source, parts["train"], other),
            )  # fmt: skip
    if source.task != "language":
        _tell_of_two_targets(source, parts, digests)


def _tell_of_two_targets(source: Source, parts: Mapping[str, Part], digests: Mapping[str, np.ndarray]) -> None:
    splits = list(parts)
    every = np.concatenate([digests[split] for split in splits])
    targets = np.concatenate([parts[split].targets.reshape(len(parts[split].targets), -1) for split in splits])
    order = np.lexsort((*targets.T, every))
    every, targets = every[order], targets[order]
    starts = np.flatnonzero(np.concatenate([[True], every[1:] != every[:-1]]))
    differs = np.concatenate([[False], (every[1:] == every[:-1]) & (targets[1:] != targets[:-1]).any(axis=1)])
    groups = np.add.reduceat(differs, starts) > 0
    if not groups.any():
        return
    sizes = np.diff(np.append(starts, len(every)))
    at = int(np.flatnonzero(differs)[0])
    offsets = np.cumsum([0, *(len(parts[split].targets) for split in splits)])

    def named(place: int) -> str:
        number = int(np.searchsorted(offsets, place, side="right")) - 1
        part, row = parts[splits[number]], place - offsets[number]
        return f"{_named(source, part, row)} ({_target(source, part, row)})"

    log.warning(
        "%d of %d samples have inputs that occur with different targets, %d different ones (the first: %s and %s)",
        int(sizes[groups].sum()), len(every), int(groups.sum()), named(int(order[at - 1])), named(int(order[at])),
    )  # fmt: skip


def _named(source: Source, part: Part, place: int) -> str:
    return source.row_name(part.origin, int(part.rows[place]))


def _target(source: Source, part: Part, place: int) -> str:
    target = part.targets[place]
    return source.classes[int(target)] if source.task == "classification" else ", ".join(map(str, target.tolist()))
