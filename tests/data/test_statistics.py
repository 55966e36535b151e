"""Statistics are exact sums: they do not depend on the order of the rows or on the size of the pieces."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from workflow_lib.data import statistics
from workflow_lib.data.statistics import Moments

unhurried = settings(deadline=None, max_examples=50)  # other work may share the machine


@unhurried
@given(arrays.arrays(np.float64, st.integers(1, 300), elements=st.floats(-1e297, 1e297)))
def test_sums_are_exact(values: np.ndarray) -> None:
    assert statistics.exact_sum(values) == sum(map(Fraction, values.tolist()), Fraction(0))


@unhurried
@given(arrays.arrays(np.float32, (12, 2, 3), elements=st.floats(-(2.0**100), 2.0**100, width=32)), st.randoms())
def test_statistics_do_not_depend_on_order_or_parts(inputs: np.ndarray, random: Any) -> None:
    order = random.sample(range(12), 12)
    whole, parts = Moments(2), Moments(2)
    whole.add(inputs)
    for part in np.array_split(inputs[order], random.randint(1, 12)):
        parts.add(part)
    assert whole.mean_and_std(1.0) == parts.mean_and_std(1.0)


def test_statistics_are_those_of_numpy(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).normal(5, 3, (500, 3, 7, 5)).astype(np.float32)
    moments = Moments(3)
    moments.add(inputs)
    mean, std = moments.mean_and_std(2.0)
    np.testing.assert_allclose(mean, inputs.mean(axis=(0, 2, 3), dtype=np.float64) / 2, rtol=1e-12)
    np.testing.assert_allclose(std, inputs.std(axis=(0, 2, 3), dtype=np.float64) / 2, rtol=1e-12)


def test_bytes_have_the_statistics_of_the_same_floats() -> None:
    inputs = np.random.default_rng(0).integers(0, 256, (50, 2, 4, 4)).astype(np.uint8)
    as_bytes, as_floats = Moments(2), Moments(2)
    as_bytes.add(inputs)
    as_floats.add(inputs.astype(np.float32))
    assert as_bytes.mean_and_std(255.0) == as_floats.mean_and_std(255.0)


def test_blocks_of_any_size_give_the_same_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = np.random.default_rng(0).integers(0, 256, (50, 2, 4, 4)).astype(np.uint8)
    results = set()
    for block in (1, 100, 1 << 22):
        monkeypatch.setattr(statistics, "BLOCK_VALUES", block)
        moments = Moments(2)
        moments.add(inputs)
        results.add(moments.mean_and_std(255.0))
    assert len(results) == 1
