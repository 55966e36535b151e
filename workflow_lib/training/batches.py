"""The samples of every micro-batch, as a function of seed and epoch: a resume needs only its place in the epoch.

epoch         every sample once, shuffled, or drawn by class; the rest after the last whole batch is not used
global batch  the samples of one optimizer step, over all ranks
micro-batch   the part of it that one rank computes in one pass
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from workflow_lib.config.length import Length
from workflow_lib.config.length_checks import warmup_problem
from workflow_lib.config.yaml import dotted
from workflow_lib.errors import ConfigError
from workflow_lib.runtime.seed import derive
from workflow_lib.training.augment import epoch_key, is_augmenting, is_mixing, mixing_partners, occurrence_ids
from workflow_lib.training.permutation import Computed, Permutation

if TYPE_CHECKING:
    from workflow_lib.data import MappedSplit, Split
    from workflow_lib.distributed.ranks import Ranks
    from workflow_lib.plan import RunConfig

# In a longer epoch each sample is computed from its place: its order would take more than 1 GiB of memory, and seconds
# at each start. The number is part of the definition of an order, and may never change.
MOST_SHUFFLED = 1 << 27


@dataclass(frozen=True)
class MicroBatch:
    """The samples that one rank computes in one pass; all tensors are int64 [b].

    samples           indices in the split
    occurrence_ids    keys of the random numbers of augmentation: the samples, unless they repeat in an epoch
    mixing_partners   indices in the split of the samples that are mixed in, or None
    """

    samples: torch.Tensor
    occurrence_ids: torch.Tensor
    mixing_partners: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def rows(self) -> torch.Tensor:
        """Indices of the rows to read: the samples, then their mixing partners."""
        return self.samples if self.mixing_partners is None else torch.cat((self.samples, self.mixing_partners))


@dataclass(frozen=True)
class Epoch:
    """The samples of all ranks in one epoch, in training order; the vectors are those of `MicroBatch`, int64 [n]."""

    samples: torch.Tensor | Computed
    occurrence_ids: torch.Tensor | Computed
    mixing_partners: torch.Tensor | Computed | None
    spans: list[tuple[int, int]]
    _newest: dict[int, list[MicroBatch]] = field(default_factory=dict, compare=False)

    def micro_batches(self, start: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of the global batch that begins at ``start``.

        Those that were computed last are kept: a step asks for them, and then the stream of its data.
        """
        if (found := self._newest.get(start)) is not None:
            return found
        self._newest.clear()
        return self._newest.setdefault(start, self._micro_batches(start))

    def _micro_batches(self, start: int) -> list[MicroBatch]:
        places = [slice(start + first, start + last) for first, last in self.spans]
        partners = self.mixing_partners
        return [
            MicroBatch(self.samples[place], self.occurrence_ids[place], None if partners is None else partners[place])
            for place in places
        ]


class Batches:
    """The global batches of a run, and the micro-batches of one rank."""

    def __init__(self, run: RunConfig, split: Split | MappedSplit, ranks: Ranks) -> None:
        self._run, self._split = run, split
        self.size = run.training.batch_size
        self.steps_per_epoch = len(split) // self.size
        self.length = Length.of(run.training, self.steps_per_epoch)
        if problem := warmup_problem(run.schedule, self.length):
            raise ConfigError(f"{dotted(problem[0])}: {problem[1]}")
        accumulation = run.training.accumulation_steps
        micro_batches = ranks.world_size * accumulation
        if self.size < micro_batches:
            raise ConfigError(
                f"training.batch_size = {self.size} is less than one sample for each of {ranks.world_size} ranks x "
                f"{accumulation} micro-batches"
            )
        edges = [self.size * number // micro_batches for number in range(micro_batches + 1)]
        first = ranks.rank * accumulation
        # the most sizes that micro-batches of a rank have, equal on all ranks
        self.most_sizes = 1 if accumulation == 1 or self.size % micro_batches == 0 else 2
        # of this rank's micro-batches in a global batch: consecutive, their sizes differ by at most one sample
        self.spans = [(edges[number], edges[number + 1]) for number in range(first, first + accumulation)]

    @property
    def is_computed(self) -> bool:
        """True if the samples of an epoch are computed when they are read."""
        return self._run.training.sampling != "balanced" and len(self._split) > MOST_SHUFFLED

    def epoch(self, number: int) -> Epoch:
        """Return the samples of an epoch, counted from 0, on the device that the split is indexed on."""
        if self.is_computed:
            return self._computed_epoch(number)
        section, device = self._run.augment, self._split.index_device
        samples = self.order(number)
        is_random = is_augmenting(section) or is_mixing(section)
        is_repeating = is_random and self._run.training.sampling == "balanced"
        ids = (occurrence_ids(samples, len(self._split)) if is_repeating else samples).to(device)
        key = epoch_key(self._run.seed, number)
        partners = mixing_partners(section, ids, key=key, samples=len(self._split))
        return Epoch(samples.to(device), ids, partners, self.spans)

    def _computed_epoch(self, number: int) -> Epoch:
        """Return an epoch whose samples are computed when they are read."""
        section, device, length = self._run.augment, self._split.index_device, len(self._split)
        permutation = Permutation(self._run.seed, number, length)

        def samples(places: torch.Tensor) -> torch.Tensor:
            return permutation(places).to(device)

        def partners(places: torch.Tensor) -> torch.Tensor:
            found = mixing_partners(section, samples(places), key=epoch_key(self._run.seed, number), samples=length)
            return samples(places) if found is None else found

        shuffled = Computed(length, samples)
        return Epoch(shuffled, shuffled, Computed(length, partners) if is_mixing(section) else None, self.spans)

    def order(self, epoch: int) -> torch.Tensor:
        """Return the indices of an epoch's samples in training order, int64 on the CPU."""
        if self._run.training.sampling == "balanced":
            return balanced_order(self._run.seed, epoch, self._split.targets.cpu())
        return epoch_order(self._run.seed, epoch, len(self._split))


def epoch_order(seed: int, epoch: int, samples: int) -> torch.Tensor:
    """Return every index below ``samples`` once, shuffled."""
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    return torch.randperm(samples, generator=generator)


def balanced_order(seed: int, epoch: int, targets: torch.Tensor) -> torch.Tensor:
    """Return as many indices as there are targets, drawn with replacement, with the same probability for each class."""
    generator = torch.Generator().manual_seed(derive(seed, "balanced order", epoch))
    counts = torch.bincount(targets)
    drawn = torch.randint(len(counts), targets.shape, generator=generator)
    # float64, since float32 cannot represent every index in a class of more than 2^24 samples
    places = (torch.rand(targets.shape, generator=generator, dtype=torch.float64) * counts[drawn]).long()
    return torch.argsort(targets, stable=True)[(counts.cumsum(0) - counts)[drawn] + places]
