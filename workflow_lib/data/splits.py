"""The rows of train, val and test: a function of the targets, the fractions and the seed."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workflow_lib import config
from workflow_lib.data.manifest import SPLITS
from workflow_lib.data.source import Source, class_numbers, first_true, labels, type_and_shape
from workflow_lib.data.statistics import merged_in_float32
from workflow_lib.errors import ConfigError, DataError

log = logging.getLogger(__name__)

COUNTED = ("classes", "labels")  # targets of which train must have a sample of each class


@dataclass(frozen=True)
class Part:
    """A split as it is stored: rows of the source's split `origin`, and their targets."""

    origin: str
    rows: np.ndarray
    targets: np.ndarray


def assign(source: Source, data: config.Data) -> dict[str, Part]:
    """Return the rows of train, val and test. Train must have every class; log a warning if val or test lacks one."""
    if not isinstance(source.targets, Mapping) or not {"train"} <= set(source.targets) <= set(SPLITS):
        given = list(source.targets) if isinstance(source.targets, Mapping) else type_and_shape(source.targets)
        raise DataError(f"Source.targets is given for {given}; `train` is required, `val` and `test` are optional")
    fractions = {"val": data.validation_fraction, "test": data.test_fraction}
    missing = [name for name in fractions if name not in source.targets]
    targets = {name: checked_targets(source, name, source.targets[name]) for name in source.targets}
    rows = {name: np.arange(len(of_split)) for name, of_split in targets.items()}
    if data.folds is not None:
        rows.update(_fold(source, targets["train"], data, data.folds, draw_test="test" in missing))
    elif missing:
        drawn = _draw(source, targets["train"], [fractions[name] for name in missing], data.split_seed)
        rows.update(zip(("train", *missing), drawn, strict=True))
    parts = {}
    for name in SPLITS:
        origin = "train" if name in missing else name
        parts[name] = Part(origin, rows[name], targets[origin][rows[name]])
        counts = class_counts(source, parts[name].targets) if source.kind in COUNTED else None
        check_classes(name, len(rows[name]), counts, source, is_drawn=bool(missing) and origin == "train")
    train = parts["train"].targets
    if source.kind == "numbers" and len(train) > 1 and (train == train[0]).all():
        raise DataError(f"every target of train is {', '.join(map(str, train[0].tolist()))}: nothing to learn")
    return parts


def _fold(
    source: Source, targets: np.ndarray, data: config.Data, count: int, *, draw_test: bool
) -> dict[str, np.ndarray]:
    """Return the rows of train and val for one of `count` folds, and of test, which all folds share."""
    if "val" in source.targets:
        raise ConfigError(
            "data.folds: this data set has a validation split of its own, so there are no folds to draw; leave out "
            "data.folds (sweep.folds), or take the split out of the data"
        )
    left, test = np.arange(len(targets)), None
    if draw_test:
        left, test = _draw(source, targets, [data.test_fraction], data.split_seed)
    groups = None if (whole := _groups(source, len(targets))) is None else whole[left]
    strata = strata_of(source, targets[left])
    fold_of = folds(strata, groups, count, data.split_seed)
    return {
        "train": left[fold_of != data.fold],
        "val": left[fold_of == data.fold],
        **({} if test is None else {"test": test}),
    }


def _draw(source: Source, targets: np.ndarray, fractions: Sequence[float], seed: int) -> tuple[np.ndarray, ...]:
    if (groups := _groups(source, len(targets))) is not None:
        return grouped_split(groups, fractions, seed)
    return stratified_split(strata_of(source, targets), fractions, seed)


def strata_of(source: Source, targets: np.ndarray) -> np.ndarray:
    """Return a number for each row; the rows of a number are divided in proportion: class by class.

    With labels, a row goes with the rarest label that it has (after Sechidis et al., ECML 2011, without updating counts
    while rows are drawn).
    """
    if source.kind == "classes":
        return targets
    if source.kind != "labels":
        return np.zeros(len(targets), np.int64)
    by_rarity = np.argsort(targets.sum(axis=0, dtype=np.int64), kind="stable")
    ranked = targets[:, by_rarity]
    rarest = np.where(ranked.any(axis=1), ranked.argmax(axis=1), targets.shape[1])
    strata: np.ndarray = np.unique(rarest, return_inverse=True)[1].astype(np.int64)
    return strata


def class_counts(source: Source, stored: np.ndarray) -> np.ndarray:
    """Return the number of targets of each class: samples, samples that have the label, or pixels of masks."""
    if source.kind == "labels":
        counts: np.ndarray = stored.sum(axis=0, dtype=np.int64)
        return counts
    if source.kind in ("classes", "masks"):
        return np.bincount(stored.ravel(), minlength=len(source.classes))[: len(source.classes)]
    return np.zeros(len(source.classes), np.int64)


def _groups(source: Source, rows: int) -> np.ndarray | None:
    """Return the group of each row of train; None if rows are drawn one by one."""
    if source.groups is None:
        return np.arange(rows) // source.group_rows if source.group_rows > 1 else None
    if np.shape(source.groups) != (rows,):
        given = type_and_shape(source.groups)
        raise DataError(f"Source.groups is {given}; allowed: a number for each of {rows} rows")
    return source.groups


def checked_targets(source: Source, split: str, targets: np.ndarray) -> np.ndarray:
    """Return the targets of a split as `stored_targets`. Raises DataError also if float32 merges many of them."""
    stored = stored_targets(source, split, targets)
    if source.kind == "numbers" and (targets.dtype.itemsize > 4 or targets.dtype.kind in "iu"):
        for column in targets.reshape(len(targets), -1).T:
            if (merged := merged_in_float32(column, tolerance=0.05)) is not None:
                raise DataError(
                    f"the targets {merged[0]!r} and {merged[1]!r} of `{split}` are equal in float32, in which models "
                    "compute; subtract a constant from the targets, or use a larger unit"
                )
    return stored


def stored_targets(source: Source, split: str, targets: np.ndarray) -> np.ndarray:
    """Return the targets as they are stored; int64 [n, 0] for tokens, and for masks, which are read with the inputs."""
    classes = len(source.classes)
    shapes = {"classes": "(n,)", "numbers": "(n,) or (n, outputs)", "labels": f"(n, {classes})"}
    is_numbers = isinstance(targets, np.ndarray) and targets.dtype.kind in "biuf" and targets.ndim in (1, 2)
    if not is_numbers or (source.kind == "numbers" and 0 in targets.shape[1:]):
        allowed = f"an array of numbers, of shape {shapes.get(source.kind, '(n, 0)')}"
        raise DataError(f"the targets of `{split}` are {type_and_shape(targets)}; allowed: {allowed}")
    if source.kind == "classes":
        return class_numbers(split, targets, classes)
    if source.kind == "labels":
        return labels(split, targets, classes)
    if source.kind in ("tokens", "masks"):
        return np.empty((len(targets), 0), np.int64)
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, which is rejected below
        numbers = np.ascontiguousarray(targets if targets.ndim == 2 else targets[:, None], dtype=np.float32)
    if source.outputs and len(source.outputs) != numbers.shape[1]:
        raise DataError(
            f"Source.outputs has {len(source.outputs)} names; allowed: one for each of {numbers.shape[1]} targets"
        )
    bad = ~np.isfinite(numbers)
    if bad.any():
        row = first_true(bad)
        raise DataError(f"the target in row {row} of `{split}` is {targets[row]}; every sample needs a finite target")
    return numbers


def check_classes(split: str, rows: int, counts: np.ndarray | None, source: Source, *, is_drawn: bool) -> None:
    """Reject an empty split and a class without a sample in train; warn of a class without a sample elsewhere.

    `counts` are the samples of each class; None for another task.
    """
    classes = source.classes
    advice = "change the fractions in `data`" if is_drawn else "leave the split out: it is then drawn from train"
    if counts is None:
        if not rows:
            raise DataError(f"the {split} split has no sample; add samples, or {advice}")
        return
    if counts.all():
        return
    if not rows and split != "train":
        raise DataError(f"the {split} split has no sample; add samples, or {advice}")
    each = [f"{name}: {count}" for name, count in zip(classes, counts, strict=True)]
    listing = ", ".join(each[:20] + ["..."] * (len(each) > 20))
    empty = ", ".join(f"`{classes[number]}`" for number in np.flatnonzero(counts == 0)[:20])
    lacking = f"the {split} split has no sample of class {empty} ({listing})"
    if split == "train":
        raise DataError(f"{lacking}; add samples of it, or remove it from the classes")
    log.warning("%s: metrics leave that class out; data.min_class_count can drop or merge rare classes", lacking)


def stratified_split(targets: np.ndarray, fractions: Sequence[float], seed: int) -> tuple[np.ndarray, ...]:
    """Return the remaining rows, then those of each fraction, ascending; every row once, each class in proportion.

    At least one row of each class remains. Apart from that, proportions are kept to within one row.
    """
    _check_fractions(fractions)
    keys = np.random.Philox(key=seed).random_raw(len(targets))  # the raw stream is the same in all numpy versions
    by_class = np.split(np.lexsort((keys, targets)), np.cumsum(np.bincount(targets))[:-1])
    sizes = [_in_proportion([len(rows) for rows in by_class], fraction) for fraction in fractions]
    for number, rows in enumerate(by_class):
        for size in reversed(sizes):  # if no row remains, the last split gives one back first
            if len(rows) and sum(of_split[number] for of_split in sizes) >= len(rows) and size[number]:
                size[number] -= 1
    pieces = [np.split(rows, np.cumsum(size)) for rows, size in zip(by_class, zip(*sizes, strict=True), strict=True)]
    *taken, left = (np.sort(np.concatenate(piece)) for piece in zip(*pieces, strict=True))
    return (left, *taken)


def grouped_split(groups: np.ndarray, fractions: Sequence[float], seed: int) -> tuple[np.ndarray, ...]:
    """Return rows as `stratified_split` does, but keep the rows of a group together.

    In random order, each group goes into the first split that still needs at least half of its rows; other groups, such
    as very large ones, remain. The fractions are therefore approximate.
    """
    _check_fractions(fractions)
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    split_of, room = np.full(len(sizes), len(fractions)), [fraction * len(groups) for fraction in fractions]
    for group in np.argsort(np.random.Philox(key=seed).random_raw(len(sizes)), kind="stable").tolist():
        split = next((split for split, rows in enumerate(room) if sizes[group] / 2 <= rows), None)
        if split is not None:
            split_of[group] = split
            room[split] -= sizes[group]
    *taken, left = (np.flatnonzero(split_of[group_of] == split) for split in range(len(fractions) + 1))
    return (left, *taken)


def folds(strata: np.ndarray, groups: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Return the fold of each row, int64 [n] from 0 to count - 1; -1 for a class with one row, which is always trained.

    Each fold has each class in proportion, to within one row. Rows of a group are in one fold: in descending order of
    their size, each group goes into the smallest fold, and classes are not balanced.
    """
    amount = len(strata) if groups is None else len(np.unique(groups))
    if amount < count:
        what = "samples" if groups is None else "groups of samples that belong together"
        raise ConfigError(f"data.folds: {count} folds of {amount} {what}; allowed: at most {amount}")
    if groups is not None:
        _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        keys = np.random.Philox(key=seed).random_raw(len(sizes))
        filled, fold_of_group = np.zeros(count, np.int64), np.empty(len(sizes), np.int64)
        for group in np.lexsort((keys, -sizes)).tolist():
            fold_of_group[group] = smallest = int(filled.argmin())
            filled[smallest] += sizes[group]
        return fold_of_group[group_of]
    keys = np.random.Philox(key=seed).random_raw(len(strata))
    fold_of = np.empty(len(strata), np.int64)
    # dealt in turn, class by class: the next class goes on where the last one ended, so that folds have equal sizes
    fold_of[np.lexsort((keys, strata))] = np.arange(len(strata)) % count
    classes, class_of, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    if len(classes) > 1:
        fold_of[sizes[class_of] == 1] = -1
    return fold_of


def _check_fractions(fractions: Sequence[float]) -> None:
    if sum(fractions) >= 1:
        raise ConfigError(
            f"data.validation_fraction and data.test_fraction are {sum(fractions):g} together; "
            "allowed: less than 1, so that data remains for train"
        )


def _in_proportion(counts: Sequence[int], fraction: float) -> list[int]:
    """Return a whole number for each count; together they are the fraction of the sum (largest remainder method)."""
    exact = [count * fraction for count in counts]
    sizes = [math.floor(quota) for quota in exact]
    by_remainder = sorted(range(len(counts)), key=lambda i: sizes[i] - exact[i])
    for i in by_remainder[: round(sum(counts) * fraction) - sum(sizes)]:
        sizes[i] += 1
    return sizes
