"""A split is a function of targets, fractions and seed alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflow_lib.data.splits import folds, grouped_split, stratified_split
from workflow_lib.errors import ConfigError

unhurried = settings(deadline=None, max_examples=50)  # other work may share the machine

FRACTIONS = st.lists(st.floats(0.01, 0.45), min_size=1, max_size=2)
TARGETS = st.lists(st.integers(0, 5), min_size=1, max_size=200).map(np.array)


@unhurried
@given(TARGETS, FRACTIONS, st.integers(0, 2**32 - 1))
def test_every_sample_is_in_exactly_one_split(targets: np.ndarray, fractions: list[float], seed: int) -> None:
    parts = stratified_split(targets, fractions, seed)
    assert len(parts) == 1 + len(fractions)
    assert sorted(np.concatenate(parts)) == list(range(len(targets)))
    for part in parts:
        assert list(part) == sorted(part)


@unhurried
@given(TARGETS, FRACTIONS, st.integers(0, 2**32 - 1))
def test_classes_are_in_proportion_in_every_split(targets: np.ndarray, fractions: list[float], seed: int) -> None:
    _, *taken = stratified_split(targets, fractions, seed)
    for rows, fraction in zip(taken, fractions, strict=True):
        for number in set(targets):
            assert abs((targets[rows] == number).sum() - (targets == number).sum() * fraction) < 1


@unhurried
@given(TARGETS, FRACTIONS, st.integers(0, 2**32 - 1))
def test_a_split_is_a_function_of_its_seed(targets: np.ndarray, fractions: list[float], seed: int) -> None:
    first, second = (stratified_split(targets, fractions, seed) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_split_never_changes() -> None:
    left, taken = stratified_split(np.array([0, 1] * 8), [0.25], 7)
    assert taken.tolist() == [1, 3, 4, 8]


def test_seeds_give_different_splits() -> None:
    targets = np.arange(300) % 3
    splits = {tuple(stratified_split(targets, [0.2], seed)[1].tolist()) for seed in range(50)}
    assert len(splits) == 50


@unhurried
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    fractions=st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=2),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_of_a_group_go_into_one_split(sizes: list[int], fractions: list[float], seed: int) -> None:
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 10, sizes))
    parts = grouped_split(groups, fractions, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    assert all((np.diff(part) > 0).all() for part in parts)
    assert sum(len(set(groups[part].tolist())) for part in parts) == len(sizes)
    for part, fraction in zip(parts[1:], fractions, strict=True):
        assert len(part) <= fraction * len(groups) + max(sizes) / 2
    again = grouped_split(groups, fractions, seed)
    assert all(np.array_equal(part, same) for part, same in zip(parts, again, strict=True))


def test_groups_of_one_row_meet_the_fractions_exactly() -> None:
    drawn = [grouped_split(np.arange(1000), [0.15, 0.2], seed) for seed in range(5)]
    assert all(list(map(len, parts)) == [650, 150, 200] for parts in drawn)
    assert len({tuple(val.tolist()) for _, val, _ in drawn}) == 5


def test_a_group_larger_than_a_fraction_is_left_to_train() -> None:
    groups = np.array([0] * 800 + list(range(1, 201)))
    for seed in range(20):
        left, val, test = grouped_split(groups, [0.05, 0.1], seed)
        assert set(range(800)) <= set(left.tolist())
        assert (len(val), len(test)) == (50, 100)


COUNTS = st.integers(2, 6)


@unhurried
@given(TARGETS, COUNTS, st.integers(0, 2**32 - 1))
def test_folds_have_equal_sizes_and_each_class_in_proportion(targets: np.ndarray, count: int, seed: int) -> None:
    targets = np.concatenate([targets, np.arange(count)])
    fold_of = folds(targets, None, count, seed)
    _, class_of, sizes = np.unique(targets, return_inverse=True, return_counts=True)
    assert ((fold_of == -1) == (sizes[class_of] == 1)).all()  # the only sample of its class is always trained
    for number in range(len(sizes)):
        in_folds = [((class_of == number) & (fold_of == fold)).sum() for fold in range(count)]
        assert sizes[number] == 1 or max(in_folds) - min(in_folds) <= 1
    assert np.array_equal(fold_of, folds(targets, None, count, seed))


@unhurried
@given(st.lists(st.integers(0, 9), min_size=1, max_size=100).map(np.array), COUNTS, st.integers(0, 2**32 - 1))
def test_the_rows_of_a_group_are_in_one_fold(groups: np.ndarray, count: int, seed: int) -> None:
    groups = np.concatenate([groups, np.arange(100, 100 + count)])
    fold_of = folds(np.zeros(len(groups), np.int64), groups, count, seed)
    assert set(fold_of.tolist()) == set(range(count))
    for group in set(groups.tolist()):
        assert len(set(fold_of[groups == group].tolist())) == 1


def test_more_folds_than_samples_are_rejected() -> None:
    with pytest.raises(ConfigError, match="5 folds of 4 samples; allowed: at most 4"):
        folds(np.zeros(4, np.int64), None, 5, 0)
    with pytest.raises(ConfigError, match="3 folds of 2 groups of samples that belong together; allowed: at most 2"):
        folds(np.zeros(4, np.int64), np.array([1, 1, 1, 2]), 3, 0)
