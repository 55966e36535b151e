"""An epoch in the device's memory, from which a step that is captured as a graph takes its samples itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

import torch

from workflow_lib.training.batches import Batches, Epoch, MicroBatch
from workflow_lib.training.passes import LoadedBatch
from workflow_lib.training.permutation import Computed

if TYPE_CHECKING:
    from workflow_lib.data import MappedSplit, Split


@final
class ResidentEpoch:
    """The samples of an epoch in training order, and the place of the next step in it; both stay where they are."""

    def __init__(self, split: Split, batches: Batches) -> None:
        self._split = split
        self._place = torch.zeros((), dtype=torch.int64, device=split.index_device)
        self._spans = [torch.arange(first, last, device=split.index_device) for first, last in batches.spans]
        self._vectors: dict[str, torch.Tensor] = {}

    @classmethod
    def of(cls, split: Split | MappedSplit, batches: Batches) -> ResidentEpoch | None:
        """Return an epoch of the split; None if the split is not in memory, or so large that its order is computed."""
        from workflow_lib.data import Split

        return cls(split, batches) if isinstance(split, Split) and not batches.is_computed else None

    def begin(self, epoch: Epoch) -> None:
        """Take the order of an epoch."""
        given = {"samples": epoch.samples, "ids": epoch.occurrence_ids, "partners": epoch.mixing_partners}
        for name, vector in given.items():
            if isinstance(vector, Computed):
                raise TypeError(f"the {name} of the epoch are computed")
            if vector is not None:
                if name in self._vectors:
                    self._vectors[name].copy_(vector)
                else:
                    self._vectors[name] = vector.clone()

    def move_to(self, place: int) -> None:
        """Set the place in the order of the first sample of the next step."""
        self._place.fill_(place)

    def micro_batches(self) -> Iterator[LoadedBatch]:
        """Yield the micro-batches of the step with their data; the host reads no number for it."""
        vectors = self._vectors
        for span in self._spans:
            places = self._place + span
            partners = vectors["partners"].index_select(0, places) if "partners" in vectors else None
            batch = MicroBatch(
                vectors["samples"].index_select(0, places), vectors["ids"].index_select(0, places), partners
            )
            yield LoadedBatch(*self._split.batch(batch.rows), batch.occurrence_ids, batch.mixing_partners)
