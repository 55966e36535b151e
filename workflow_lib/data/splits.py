"""Which rows are train, val and test: a function of the targets, the fractions and the seed."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workflow_lib import config
from workflow_lib.data.manifest import SPLITS
from workflow_lib.data.source import Source, first_true, merged_in_float32, numbered, shown
from workflow_lib.errors import ConfigError, DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A split as it will be stored: which rows of which of the source's splits, and their targets as stored."""

    origin: str
    rows: np.ndarray
    targets: np.ndarray


def assign(source: Source, data: config.Data) -> dict[str, Part]:
    """The rows of train, val and test; train must have every class, a split that lacks one is told."""
    if not isinstance(source.targets, Mapping) or not {"train"} <= set(source.targets) <= set(SPLITS):
        given = list(source.targets) if isinstance(source.targets, Mapping) else shown(source.targets)
        raise DataError(
            f"Source.targets is given for {given}; it has `train`, and `val` and `test` where there are any"
        )
    fractions = {"val": data.validation_fraction, "test": data.test_fraction}
    missing = [name for name in fractions if name not in source.targets]
    targets = {name: _as_stored(source, name) for name in source.targets}
    rows = {name: np.arange(len(of_split)) for name, of_split in targets.items()}
    if missing:
        made = _drawn(source, targets["train"], [fractions[name] for name in missing], data.split_seed)
        rows.update(zip(("train", *missing), made, strict=True))
    parts = {}
    for name in SPLITS:
        origin = "train" if name in missing else name
        parts[name] = Part(origin, rows[name], targets[origin][rows[name]])
        _refuse_empty(name, parts[name], source, made=bool(missing) and origin == "train")
    learnt = parts["train"].targets
    if source.task == "regression" and len(learnt) > 1 and (learnt == learnt[0]).all():
        raise DataError(f"every target of train is {', '.join(map(str, learnt[0].tolist()))}: nothing to learn")
    return parts


def _drawn(source: Source, targets: np.ndarray, fractions: Sequence[float], seed: int) -> tuple[np.ndarray, ...]:
    if source.groups is not None:
        if np.shape(source.groups) != (len(targets),):
            raise DataError(f"Source.groups is {shown(source.groups)}; it has a number for each of {len(targets)} rows")
        return grouped_split(source.groups, fractions, seed)
    strata = targets if source.task == "classification" else np.zeros(len(targets), np.int64)
    return stratified_split(strata, fractions, seed)


def _as_stored(source: Source, split: str) -> np.ndarray:
    """Targets of a split: int64 [n]; float32 [n, outputs] of a regression; int64 [n, 0] of a language."""
    targets = source.targets[split]
    shapes = {"classification": "(n,)", "regression": "(n,) or (n, outputs)", "language": "(n, 0)"}
    is_numbers = isinstance(targets, np.ndarray) and targets.dtype.kind in "biuf" and targets.ndim in (1, 2)
    if not is_numbers or (source.task == "regression" and 0 in targets.shape[1:]):
        allowed = f"an array of numbers, of shape {shapes[source.task]}"
        raise DataError(f"the targets of `{split}` are {shown(targets)}; allowed: {allowed}")
    if source.task == "classification":
        return numbered(split, targets, len(source.classes))
    if source.task == "language":
        return np.empty((len(targets), 0), np.int64)
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and that is refused
        numbers = np.ascontiguousarray(targets if targets.ndim == 2 else targets[:, None], dtype=np.float32)
    bad = ~np.isfinite(numbers)
    if bad.any():
        row = first_true(bad)
        raise DataError(f"the target in row {row} of `{split}` is {targets[row]}; every sample needs a finite target")
    if targets.dtype.itemsize > 4 or targets.dtype.kind in "iu":
        for column in targets.reshape(len(targets), -1).T:
            if (merged := merged_in_float32(column, tolerance=0.05)) is not None:
                raise DataError(
                    f"the targets of `{split}` have {merged[0]!r} and {merged[1]!r}, which float32, in which models "
                    "compute, does not tell apart; predict the difference from a start, or a larger unit"
                )
    return numbers


def _refuse_empty(split: str, part: Part, source: Source, *, made: bool) -> None:
    classes = source.classes
    advice = "change the fractions in `data`" if made else "leave the split out, to have it made from train"
    if source.task != "classification":
        if not len(part.rows):
            raise DataError(f"the {split} split has no sample; give more samples, or {advice}")
        return
    counts = np.bincount(part.targets, minlength=len(classes))
    if counts.all():
        return
    if not len(part.rows) and split != "train":
        raise DataError(f"the {split} split has no sample; give more samples, or {advice}")
    each = [f"{name}: {count}" for name, count in zip(classes, counts, strict=True)]
    listing = ", ".join(each[:20] + ["..."] * (len(each) > 20))
    empty = ", ".join(f"`{classes[number]}`" for number in np.flatnonzero(counts == 0)[:20])
    lacking = f"the {split} split has no sample of class {empty} ({listing})"
    if split == "train":
        raise DataError(f"{lacking}; give samples of each class, or leave it out of the classes")
    log.warning("%s; it says nothing about that class: data.min_class_count can drop or merge rare classes", lacking)


def stratified_split(targets: np.ndarray, fractions: Sequence[float], seed: int) -> tuple[np.ndarray, ...]:
    """Rows of what is left, then of each fraction, ascending: each row once, each class in proportion.

    What is left has at least one row of each class. Apart from that, proportion is kept to within one row. The random
    numbers are Philox's raw stream, equal in all numpy versions.
    """
    _refuse_all_held_out(fractions)
    keys = np.random.Philox(key=seed).random_raw(len(targets))
    by_class = np.split(np.lexsort((keys, targets)), np.cumsum(np.bincount(targets))[:-1])
    sizes = [_in_proportion([len(rows) for rows in by_class], fraction) for fraction in fractions]
    for number, rows in enumerate(by_class):
        for size in reversed(sizes):  # the test gives a row back first
            if len(rows) and sum(of_split[number] for of_split in sizes) >= len(rows) and size[number]:
                size[number] -= 1
    pieces = [np.split(rows, np.cumsum(size)) for rows, size in zip(by_class, zip(*sizes, strict=True), strict=True)]
    *taken, left = (np.sort(np.concatenate(piece)) for piece in zip(*pieces, strict=True))
    return (left, *taken)


def grouped_split(groups: np.ndarray, fractions: Sequence[float], seed: int) -> tuple[np.ndarray, ...]:
    """As `stratified_split`, but rows of a group go together; the fractions are met as nearly as the groups allow.

    The groups come in a drawn order, and each goes where at least half of it is wanted: a very large one is left.
    """
    _refuse_all_held_out(fractions)
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    split_of, room = np.full(len(sizes), len(fractions)), [fraction * len(groups) for fraction in fractions]
    for group in np.argsort(np.random.Philox(key=seed).random_raw(len(sizes)), kind="stable").tolist():
        split = next((split for split, rows in enumerate(room) if sizes[group] / 2 <= rows), None)
        if split is not None:
            split_of[group] = split
            room[split] -= sizes[group]
    *taken, left = (np.flatnonzero(split_of[group_of] == split) for split in range(len(fractions) + 1))
    return (left, *taken)


def _refuse_all_held_out(fractions: Sequence[float]) -> None:
    if sum(fractions) >= 1:
        raise ConfigError(
            f"data.validation_fraction and data.test_fraction are {sum(fractions):g} together; "
            "less than 1 leaves data to train"
        )


def _in_proportion(counts: Sequence[int], fraction: float) -> list[int]:
    """A whole number for each count, together the fraction of their sum: the largest remainders go up."""
    exact = [count * fraction for count in counts]
    sizes = [math.floor(quota) for quota in exact]
    by_remainder = sorted(range(len(counts)), key=lambda i: sizes[i] - exact[i])
    for i in by_remainder[: round(sum(counts) * fraction) - sum(sizes)]:
        sizes[i] += 1
    return sizes
