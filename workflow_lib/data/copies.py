"""Equal inputs, found by a digest of each sample: copies across splits, and equal inputs with different targets."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from workflow_lib.data.source import Source, bytes_of
from workflow_lib.data.splits import Part
from workflow_lib.errors import DataError
from workflow_lib.files import blake2b
from workflow_lib.text import count

log = logging.getLogger(__name__)


def row_digests(inputs: np.ndarray) -> np.ndarray:
    """Return 64 bits of BLAKE2b of each sample, uint64 [n]."""
    if not len(inputs):
        return np.empty(0, np.uint64)
    rows = bytes_of(np.ascontiguousarray(inputs)).cast("B")
    size = len(rows) // len(inputs)
    digests = (blake2b(memoryview(rows[at : at + size]), size=8).digest() for at in range(0, len(rows), size))
    return np.frombuffer(b"".join(digests), np.uint64)


def check_copies(source: Source, parts: Mapping[str, Part], digests: Mapping[str, np.ndarray]) -> None:
    """Log a warning for copies of train samples in val and test, and for equal inputs with different targets.

    Raises DataError if all inputs of train are the same.
    """
    train = digests["train"]
    if not source.has_tokens and len(train) > 1 and (train == train[0]).all():
        raise DataError(
            f"all {len(train)} inputs of train are the same after preparation: nothing can be learned from them "
            "(for images, check transparent parts, which are drawn on the background, and the result of the crop)"
        )
    known, first = np.unique(train, return_index=True)
    for split in ("val", "test"):
        # A digest above all others is compared with the last, which differs.
        places = np.minimum(np.searchsorted(known, digests[split]), len(known) - 1)
        copies = np.flatnonzero(known[places] == digests[split])
        if len(copies):
            copy, original = copies[0], first[places[copies[0]]]
            log.warning(
                "%d of %d samples of %s are copies of samples of train (the first: %s = %s): metrics on %s do not show "
                "how the model does on new data",
                len(copies), len(digests[split]), split, _row_name(source, parts[split], copy),
                _row_name(source, parts["train"], original), split,
            )  # fmt: skip
    if source.kind not in ("tokens", "masks"):  # whose targets are not in memory
        _warn_of_different_targets(source, parts, digests)


def _warn_of_different_targets(source: Source, parts: Mapping[str, Part], digests: Mapping[str, np.ndarray]) -> None:
    splits = list(parts)
    inputs = np.concatenate([digests[split] for split in splits])
    targets = np.concatenate([parts[split].targets.reshape(len(parts[split].targets), -1) for split in splits])
    # Sorted by input, then by target: equal inputs are neighbours, and so are their equal targets.
    order = np.lexsort((*targets.T, inputs))
    inputs, targets = inputs[order], targets[order]
    starts = np.flatnonzero(np.concatenate([[True], inputs[1:] != inputs[:-1]]))
    differs = np.concatenate([[False], (inputs[1:] == inputs[:-1]) & (targets[1:] != targets[:-1]).any(axis=1)])
    groups = np.add.reduceat(differs, starts) > 0
    if not groups.any():
        return
    sizes = np.diff(np.append(starts, len(inputs)))
    at = int(np.flatnonzero(differs)[0])
    offsets = np.cumsum([0, *(len(parts[split].targets) for split in splits)])

    def name(place: int) -> str:
        number = int(np.searchsorted(offsets, place, side="right")) - 1
        part, row = parts[splits[number]], place - offsets[number]
        return f"{_row_name(source, part, row)} ({_target(source, part, row)})"

    log.warning(
        "%d of %d samples have inputs that occur with different targets (%s; the first: %s and %s)",
        int(sizes[groups].sum()), len(inputs), count(int(groups.sum()), "different input"),
        name(int(order[at - 1])), name(int(order[at])),
    )  # fmt: skip


def _row_name(source: Source, part: Part, place: int) -> str:
    return source.row_name(part.origin, int(part.rows[place]))


def _target(source: Source, part: Part, place: int) -> str:
    target = part.targets[place]
    if source.kind == "classes":
        return source.classes[int(target)]
    if source.kind == "labels":
        return ", ".join(source.classes[label] for label in np.flatnonzero(target)) or "no class"
    return ", ".join(map(str, target.tolist()))
