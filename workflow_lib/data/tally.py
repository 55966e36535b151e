"""Totals over the shards, for the manifest: counts, digests, mean and standard deviation."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np

from workflow_lib import config
from workflow_lib.data.manifest import SPLITS, Manifest, Shard, SplitSummary
from workflow_lib.data.shard_writer import PreparedShard, new_moments
from workflow_lib.data.source import Source, bytes_of
from workflow_lib.data.splits import class_counts
from workflow_lib.files import blake2b

log = logging.getLogger(__name__)


class Tally:
    """Totals of the shards added so far; the shards of a split must be added in order."""

    def __init__(self, source: Source, first: np.ndarray, targets: np.ndarray) -> None:
        self.source, self.first = source, first
        self.shards: list[Shard] = []
        self.samples = Counter[str]()
        self.counts = {split: np.zeros(len(source.classes), np.int64) for split in SPLITS}
        self.hashers = {split: (blake2b(), blake2b()) for split in SPLITS}
        self.digests: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        self.moments, self.target_moments = new_moments(source, first, targets)

    def add(self, shard: Shard, prepared: PreparedShard) -> None:
        """Add the next shard of its split."""
        stored = prepared.stored
        self.shards.append(shard.model_copy(update={"digest": stored.digest}))
        self.samples[shard.split] += len(stored.targets)
        self.counts[shard.split] += class_counts(self.source, stored.targets)
        for hasher, array in zip(self.hashers[shard.split], (stored.inputs, stored.targets), strict=True):
            hasher.update(bytes_of(array))
        self.digests[shard.split].append(prepared.digests)
        self.moments.merge(prepared.moments)
        self.target_moments.merge(prepared.target_moments)

    def manifest(self, store: str, data: config.Data, root: Path) -> Manifest:
        """Return the manifest of the shards."""
        source = self.source
        mean, std = self.moments.mean_and_std(source.scale)
        has_categories = [bool(feature.categories) for feature in source.features] or [False] * len(mean)
        target_mean, target_std = self.target_moments.mean_and_std(1.0)
        # For a table, the data set has already warned about constant columns by name.
        is_told = source.features and source.mapped is None
        if constant := [] if is_told else self.moments.constant_channels():
            named = [f"`{source.features[number].name}`" if source.features else str(number) for number in constant]
            log.warning("channels %s of the inputs never vary in train", ", ".join(named[:20]))
        if source.kind == "masks" and (absent := np.flatnonzero(self.counts["train"] == 0)).size:
            names = ", ".join(f"`{source.classes[number]}`" for number in absent[:20])
            log.warning("no pixel of train is %s: the model cannot learn it", names)
        manifest = Manifest(
            digest="",
            store=store,
            data=data.model_dump(mode="json"),
            task=source.task,
            input_shape=self.first.shape[1:],
            dtype=self.first.dtype.name,
            classes=source.classes,
            features=source.features,
            outputs=source.outputs,
            vocabulary=source.vocabulary,
            tokenizer=source.tokenizer,
            scale=source.scale,
            mean=tuple(0.0 if is_set else value for value, is_set in zip(mean, has_categories, strict=True)),
            std=tuple(1.0 if is_set else value for value, is_set in zip(std, has_categories, strict=True)),
            target_mean=target_mean,
            target_std=target_std,
            splits={split: self._summary(split) for split in SPLITS},
            shards=tuple(self.shards),
            sources={relative(file.path, root): file.digest for file in source.files},
        )
        return manifest.model_copy(update={"digest": manifest.content_digest()})

    def _summary(self, split: str) -> SplitSummary:
        # Inputs and targets have separate hashers: so the digest does not depend on the size of the shards.
        whole = blake2b(b"".join(hasher.digest() for hasher in self.hashers[split]))
        per_class = tuple(self.counts[split].tolist())
        return SplitSummary(samples=self.samples[split], per_class=per_class, digest=whole.hexdigest())


def relative(path: Path, root: Path) -> str:
    """Return the path as the manifest names it: relative to the project if it is inside of it."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
