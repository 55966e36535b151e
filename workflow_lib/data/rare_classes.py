"""Classes with too few samples to be learnt are left out, or put together, before the splits are drawn."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from workflow_lib import config
from workflow_lib.data.source import Source, numbered
from workflow_lib.errors import DataError

log = logging.getLogger(__name__)

OTHER = "other"


def without_rare(source: Source, data: config.Data) -> Source:
    """The source without the samples of classes that have fewer than `data.min_class_count`, or with one for them all.

    The samples of train count, from which missing splits are still to be drawn. DataError where no two classes remain.
    """
    if data.min_class_count <= 1:
        return source
    if source.task != "classification":
        raise DataError(f"data.min_class_count: a {source.task} has no classes")
    targets = {split: numbered(split, of_split, len(source.classes)) for split, of_split in source.targets.items()}
    counts = np.bincount(targets["train"], minlength=len(source.classes))
    is_rare = counts < data.min_class_count
    if not is_rare.any():
        return source
    names = [name for name, rare in zip(source.classes, is_rare, strict=True) if not rare]
    number_of = np.where(is_rare, len(names), np.cumsum(~is_rare) - 1)  # of each class, its new number
    told = [f"{name}: {count}" for name, count, rare in zip(source.classes, counts, is_rare, strict=True) if rare]
    listing = ", ".join(told[:20] + ["..."] * (len(told) > 20))
    if data.rare_classes == "merge":
        other = OTHER if OTHER not in names else f"{OTHER} (rare)"
        log.warning("classes with fewer than %d samples are one class `%s` (%s)", data.min_class_count, other, listing)
        names.append(other)
    else:
        log.warning("classes with fewer than %d samples are left out (%s)", data.min_class_count, listing)
    if len(names) < 2:
        raise DataError(
            f"data.min_class_count: {data.min_class_count} leaves {len(names)} class, and two are needed ({listing})"
        )
    kept = {split: np.flatnonzero(number_of[of_split] < len(names)) for split, of_split in targets.items()}
    kept = {split: rows for split, rows in kept.items() if len(rows) or split == "train"}
    return _changed(source, kept, {split: number_of[targets[split][rows]] for split, rows in kept.items()}, names)


def _changed(
    source: Source, kept: dict[str, np.ndarray], targets: dict[str, np.ndarray], classes: Sequence[str]
) -> Source:
    """The source with these rows, targets and classes; what it learns from other rows is changed alike."""
    learn_from = source.learn_from
    return replace(
        source,
        targets=targets,
        classes=tuple(classes),
        read=lambda split, rows: source.read(split, kept[split][rows]),
        learn_from=learn_from and (lambda rows: _changed(learn_from(kept["train"][rows]), kept, targets, classes)),
        groups=None if source.groups is None else np.asarray(source.groups)[kept["train"]],
        row_digests={
            split: [digests[row] for row in kept[split].tolist()]
            for split, digests in source.row_digests.items()
            if split in kept
        },
        row_name=lambda split, row: source.row_name(split, int(kept[split][row])),
    )
