"""Drop or merge classes with too few samples, before the splits are drawn."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from workflow_lib import config
from workflow_lib.data.source import Source, class_numbers
from workflow_lib.errors import DataError

log = logging.getLogger(__name__)

OTHER = "other"


def apply_min_class_count(source: Source, data: config.Data) -> Source:
    """Return the source without its rare classes, or with all of them merged into one class.

    A class is rare if `train`, before missing splits are drawn from it, has fewer than `data.min_class_count` samples
    of it. Raises DataError if fewer than two classes remain.
    """
    if data.min_class_count <= 1:
        return source
    if source.kind != "classes":
        raise DataError(f"data.min_class_count: {source.task} has no single class for each sample; remove the setting")
    targets = {split: class_numbers(split, given, len(source.classes)) for split, given in source.targets.items()}
    counts = np.bincount(targets["train"], minlength=len(source.classes))
    is_rare = counts < data.min_class_count
    if not is_rare.any():
        return source
    names = [name for name, rare in zip(source.classes, is_rare, strict=True) if not rare]
    # The new number of each class; rare classes get the number after the last.
    number_of = np.where(is_rare, len(names), np.cumsum(~is_rare) - 1)
    counted = [f"{name}: {count}" for name, count, rare in zip(source.classes, counts, is_rare, strict=True) if rare]
    listing = ", ".join(counted[:20] + ["..."] * (len(counted) > 20))
    if data.rare_classes == "merge":
        other = OTHER if OTHER not in names else f"{OTHER} (rare)"
        log.warning(
            "classes with fewer than %d samples are merged into the class `%s` (%s)",
            data.min_class_count, other, listing,
        )  # fmt: skip
        names.append(other)
    else:
        log.warning("classes with fewer than %d samples are left out (%s)", data.min_class_count, listing)
    if len(names) < 2:
        raise DataError(
            f"data.min_class_count: {data.min_class_count} leaves {len(names)} class, and two are needed; lower it "
            f"(rare classes: {listing})"
        )
    kept = {split: np.flatnonzero(number_of[of_split] < len(names)) for split, of_split in targets.items()}
    # A split without any row is left out, and then drawn from train.
    kept = {split: rows for split, rows in kept.items() if len(rows) or split == "train"}
    return _changed(source, kept, {split: number_of[targets[split][rows]] for split, rows in kept.items()}, names)


def _changed(
    source: Source, kept: dict[str, np.ndarray], targets: dict[str, np.ndarray], classes: Sequence[str]
) -> Source:
    """Return the source with only these rows, and with these targets and classes, also after `learn_from`."""
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
        sample_names=lambda split, rows: source.names_of(split, kept[split][rows]),
    )
