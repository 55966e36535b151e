"""Rows as runs: they are the rows that they were made of, and drawn splits divide all rows."""

from __future__ import annotations

from fractions import Fraction

import hypothesis
import numpy as np
from hypothesis import strategies as st

from workflow_lib.data.rows import MOST_RUNS, Rows, draw_runs


@hypothesis.given(st.sets(st.integers(0, 40)))
def test_runs_are_the_rows_that_they_were_made_of(given: set[int]) -> None:
    rows = np.array(sorted(given), np.int64)
    made = Rows.of(rows)
    assert len(made) == len(rows)
    assert made[np.arange(len(rows))].tolist() == rows.tolist()
    assert [row for chunk in made.chunks(7) for row in chunk.tolist()] == rows.tolist()
    assert made.spaced(100).tolist() == rows.tolist()


@hypothesis.given(st.integers(1, 3000), st.sampled_from([0.001, 0.1, 0.3]), st.integers(1, 20), st.integers(0, 5))
def test_drawn_splits_divide_all_rows(count: int, fraction: float, unit: int, seed: int) -> None:
    fractions = {"val": fraction, "test": 0.2}
    drawn = draw_runs(count, fractions, seed, unit)
    found = {split: rows[np.arange(len(rows))] for split, rows in drawn.items()}
    assert np.sort(np.concatenate([*found.values()])).tolist() == list(range(count))
    assert {split: len(rows) for split, rows in found.items() if split != "train"} == {
        "val": round(Fraction(fraction) * count),
        "test": round(Fraction(0.2) * count),
    }
    assert all((np.diff(rows) > 0).all() for rows in found.values())


def test_runs_are_spread_over_all_rows_and_as_long_as_the_unit() -> None:
    drawn = draw_runs(10**9, {"val": 1e-6, "test": 1e-4}, 0, 1)
    assert (len(drawn["val"]), len(drawn["test"])) == (1000, 100_000)
    starts = drawn["test"].runs[:, 0]
    assert len(starts) == 1000 <= MOST_RUNS
    assert (starts // 10**6).tolist() == list(range(1000))
    in_units = draw_runs(10**6, {"val": 0.01}, 0, 160)["val"].runs
    assert (in_units[:, 1] - in_units[:, 0]).min() >= 160


def test_another_seed_draws_other_rows() -> None:
    first, second, again = (draw_runs(10**6, {"val": 0.01}, seed, 1)["val"].runs for seed in (1, 2, 1))
    assert first.tolist() == again.tolist() != second.tolist()
