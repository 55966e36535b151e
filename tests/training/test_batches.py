"""The order of the data is a function of seed and epoch, and the ranks divide each batch without gap or overlap."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from workflow_lib import plan
from workflow_lib.config import Experiment
from workflow_lib.data import Split
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.errors import ConfigError
from workflow_lib.training.batches import Batches, balanced_order, epoch_order


def batches(samples: int = 100, rank: int = 0, world_size: int = 1, augment: Any = None, **training: Any) -> Batches:
    run = plan.base(Experiment.model_validate({"name": "one", "training": training, "augment": augment}))
    ranks = Ranks(rank=rank, local_rank=rank, world_size=world_size)
    return Batches(run, Split(torch.zeros(samples, 1), torch.arange(samples) % 2), ranks)


@hypothesis.given(batch=st.integers(1, 100), world_size=st.integers(1, 5), accumulation=st.integers(1, 4))
def test_the_micro_batches_of_all_ranks_are_the_batch(batch: int, world_size: int, accumulation: int) -> None:
    hypothesis.assume(batch >= world_size * accumulation)
    given = {"batch_size": batch, "accumulation_steps": accumulation}
    start = 100 - batch
    epochs = [batches(100, rank, world_size, **given).epoch(3) for rank in range(world_size)]
    micro_batches = [micro_batch for epoch in epochs for micro_batch in epoch.micro_batches(start)]
    assert torch.equal(torch.cat([micro_batch.samples for micro_batch in micro_batches]), epochs[0].samples[start:])
    sizes = [len(micro_batch) for micro_batch in micro_batches]
    assert max(sizes) - min(sizes) <= 1


def test_a_micro_batch_reads_its_samples_and_then_their_mixing_partners() -> None:
    (plain,) = batches(batch_size=10).epoch(0).micro_batches(20)
    assert plain.mixing_partners is None
    assert torch.equal(plain.rows, plain.samples)
    (mixed,) = batches(batch_size=10, augment={"mixup": 0.4}).epoch(0).micro_batches(20)
    assert mixed.mixing_partners is not None
    assert torch.equal(mixed.rows, torch.cat((plain.samples, mixed.mixing_partners)))


def test_the_occurrences_of_a_sample_that_is_drawn_again_have_ids_of_their_own() -> None:
    epoch = batches(sampling="balanced", augment={"flip_horizontal": 0.5}).epoch(0)
    assert len(epoch.samples.unique()) < len(epoch.samples)
    assert len(epoch.occurrence_ids.unique()) == len(epoch.samples)
    assert torch.equal(epoch.occurrence_ids % 100, epoch.samples)


def test_a_batch_that_is_too_small_is_rejected() -> None:
    assert batches(100, batch_size=33).steps_per_epoch == 3
    with pytest.raises(ConfigError, match="= 5 is less than one sample for each of 3 ranks x 2 micro-batches"):
        batches(100, world_size=3, batch_size=5, accumulation_steps=2)


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
