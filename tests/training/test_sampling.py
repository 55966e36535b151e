"""The order of the data is a function of seed and epoch, and the ranks take each batch apart without a gap."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from workflow_lib import plan
from workflow_lib.config import Experiment
from workflow_lib.data import Split
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.errors import ConfigError
from workflow_lib.training.sampling import Sampling, balanced_order, epoch_order


def sampling(samples: int = 100, rank: int = 0, world_size: int = 1, **training: object) -> Sampling:
    run = plan.base(Experiment.model_validate({"name": "one", "training": training}))
    ranks = Ranks(rank=rank, local_rank=rank, world_size=world_size)
    return Sampling(run, Split(torch.zeros(samples, 1), torch.arange(samples) % 2), ranks)


@hypothesis.given(batch=st.integers(1, 100), world_size=st.integers(1, 5), accumulation=st.integers(1, 4))
def test_the_micro_batches_of_all_ranks_are_the_batch(batch: int, world_size: int, accumulation: int) -> None:
    hypothesis.assume(batch >= world_size * accumulation)
    given = {"batch_size": batch, "accumulation_steps": accumulation}
    windows = [one for rank in range(world_size) for one in sampling(100, rank, world_size, **given).windows]
    assert [row for start, stop in windows for row in range(start, stop)] == list(range(batch))
    sizes = {stop - start for start, stop in windows}
    assert max(sizes) - min(sizes) <= 1


def test_a_batch_that_is_too_small_is_refused() -> None:
    assert sampling(100, batch_size=33).steps_per_epoch == 3
    with pytest.raises(ConfigError, match="= 5 is less than one sample for each of 3 ranks x 2 micro-batches"):
        sampling(100, world_size=3, batch_size=5, accumulation_steps=2)


def test_an_order_has_each_sample_once_and_is_a_function_of_seed_and_epoch() -> None:
    order = epoch_order(5, 3, 1000)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, epoch_order(5, 3, 1000))
    assert not torch.equal(order, epoch_order(5, 4, 1000))
    assert not torch.equal(order, epoch_order(6, 3, 1000))


def test_a_balanced_order_draws_all_classes_equally_often_and_is_a_function_of_seed_and_epoch() -> None:
    targets = torch.tensor([0] * 900 + [2] * 80 + [1] * 20)[torch.randperm(1000)]
    order = balanced_order(5, 3, targets)
    assert order.shape == targets.shape
    drawn = torch.bincount(targets[order])
    assert ((drawn > 270) & (drawn < 400)).all()
    assert len(order[targets[order] == 1].unique()) == 20
    assert torch.equal(order, balanced_order(5, 3, targets))
    assert not torch.equal(order, balanced_order(5, 4, targets))
    assert not torch.equal(order, balanced_order(6, 3, targets))
