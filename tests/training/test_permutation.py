"""Orders that are computed from places: each sample once, shuffled, and a function of seed and epoch."""

from __future__ import annotations

from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from tests.training.test_batches import batches
from workflow_lib.training import batches as module
from workflow_lib.training.permutation import Computed, Permutation


@hypothesis.given(st.integers(1, 5000), st.integers(0, 3), st.integers(0, 3))
def test_each_sample_comes_once(samples: int, seed: int, epoch: int) -> None:
    order = Permutation(seed, epoch, samples)(torch.arange(samples))
    assert torch.equal(order.sort().values, torch.arange(samples))


def test_places_are_computed_alone_as_together() -> None:
    permutation = Permutation(1, 2, 10**9)
    places = torch.arange(10**9 - 50, 10**9)
    together = permutation(places)
    assert together.max() < 10**9
    assert len(together.unique()) == 50
    assert torch.equal(torch.cat([permutation(place[None]) for place in places]), together)


def test_seed_and_epoch_give_other_orders() -> None:
    first = Permutation(1, 1, 10**9)(torch.arange(1000))
    for other in (Permutation(2, 1, 10**9), Permutation(1, 2, 10**9)):
        assert (other(torch.arange(1000)) != first).all()


def test_an_order_looks_random() -> None:
    """Neighbours go to independent places: chi-square of 64 x 64 counts within five deviations of its mean."""
    samples = 10**9
    order = Permutation(0, 0, samples)(torch.arange(400_000)).numpy()
    boxes = order * 64 // samples
    counts = np.bincount(boxes[:-1] * 64 + boxes[1:], minlength=4096)
    expected = (len(order) - 1) / 4096
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 4095) < 5 * (2 * 4095) ** 0.5
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.01


def test_the_order_of_a_version_stays() -> None:
    """A change would give the rest of an epoch other samples after an upgrade."""
    assert Permutation(0, 3, 10**9)(torch.arange(3)).tolist() == [53195909, 447434948, 66368974]
    assert module.MOST_SHUFFLED == 2**27


@pytest.mark.parametrize("augment", [None, {"mixup": 0.4}, {"flip_horizontal": 0.5}])
def test_a_long_epoch_is_divided_like_a_short_one(augment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SHUFFLED", 99)
    epochs = [batches(100, rank, 2, batch_size=20, augment=augment).epoch(3) for rank in range(2)]
    parts = [[part for epoch in epochs for part in epoch.micro_batches(start)] for start in range(0, 100, 20)]
    samples = torch.cat([part.samples for of_step in parts for part in of_step])
    assert torch.equal(samples.sort().values, torch.arange(100))
    assert torch.equal(samples, Permutation(0, 3, 100)(torch.arange(100)))
    for part in (part for of_step in parts for part in of_step):
        assert torch.equal(part.occurrence_ids, part.samples)
        assert (part.mixing_partners is None) == (augment is None or "mixup" not in augment)
        if part.mixing_partners is not None:
            assert len(part.rows) == 2 * len(part)


def test_computed_values_are_read_by_slices() -> None:
    squares = Computed(10, lambda places: places**2)
    assert len(squares) == 10
    assert squares[3:5].tolist() == [9, 16]
    assert squares[8:99].tolist() == [64, 81]
