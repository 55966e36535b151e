"""Which samples a step is of: a function of seed and epoch, so that a resume is an index."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from workflow_lib.errors import ConfigError
from workflow_lib.runtime.seed import derive

if TYPE_CHECKING:
    from workflow_lib.data import MappedSplit, Split
    from workflow_lib.distributed.ranks import Ranks
    from workflow_lib.plan import RunConfig


class Sampling:
    """The global batches of each epoch, and this rank's micro-batches of each."""

    def __init__(self, run: RunConfig, split: Split | MappedSplit, ranks: Ranks) -> None:
        self._run, self._split = run, split
        self.batch = run.training.batch_size
        self.steps_per_epoch = len(split) // self.batch
        parts = ranks.world_size * run.training.accumulation_steps
        if self.batch < parts:
            raise ConfigError(
                f"training.batch_size = {self.batch} is less than one sample for each of {ranks.world_size} ranks x "
                f"{run.training.accumulation_steps} micro-batches"
            )
        edges = [self.batch * part // parts for part in range(parts + 1)]
        count = run.training.accumulation_steps
        first = ranks.rank * count
        # where they begin and end inside a global batch: consecutive, as equal as can be
        self.windows = [(edges[part], edges[part + 1]) for part in range(first, first + count)]

    def order(self, epoch: int) -> torch.Tensor:
        """The samples of the epoch, by their numbers in the split; its steps take them from the front."""
        if self._run.training.sampling == "balanced":
            return balanced_order(self._run.seed, epoch, self._split.targets.cpu())
        return epoch_order(self._run.seed, epoch, len(self._split))


def epoch_order(seed: int, epoch: int, samples: int) -> torch.Tensor:
    """Every sample once, shuffled."""
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    return torch.randperm(samples, generator=generator)


def balanced_order(seed: int, epoch: int, targets: torch.Tensor) -> torch.Tensor:
    """As many samples as there are, drawn with replacement, each class equally often."""
    generator = torch.Generator().manual_seed(derive(seed, "balanced order", epoch))
    counts = torch.bincount(targets)
    drawn = torch.randint(len(counts), targets.shape, generator=generator)
    places = (torch.rand(targets.shape, generator=generator, dtype=torch.float64) * counts[drawn]).long()
    return torch.argsort(targets, stable=True)[(counts.cumsum(0) - counts)[drawn] + places]
