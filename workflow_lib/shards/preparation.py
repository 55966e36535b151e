"""The shards of a data set are made: a crash costs those being written, and what verifies is kept."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from workflow_lib import config, plan, plugins
from workflow_lib.errors import ConfigError, DataError
from workflow_lib.shards.manifest import SPLITS, Manifest, Shard, SplitSummary
from workflow_lib.shards.source import Source, SourceFile, blake2b, bytes_of, content_digest, read_rows
from workflow_lib.shards.splits import Part, assign
from workflow_lib.shards.statistics import Moments
from workflow_lib.shards.store import Stored, read_shard, write_shard

log = logging.getLogger(__name__)

SHARD_BYTES = 1 << 27  # largest shard, whatever its number of samples: a few of them fit the memory of any job


def preprocess(experiment: config.Experiment, data_id: str, work: Path, output: Path) -> None:
    """The data of a plan is in the store, and its manifest in the output."""
    runs = [run.config for run in plan.expand(experiment)]
    if experiment.tune is not None:
        runs.append(plan.tuned_base(experiment))
    used = {plan.data_id(run): plan.data_settings(run) for run in runs}
    if data_id not in used:
        raise ConfigError(f"experiment `{experiment.name}` has no data {data_id}; it has {', '.join(sorted(used))}")
    prepare(used[data_id], Path.cwd(), work).save(output)


def prepare(settings: Mapping[str, Any], root: Path, work: Path) -> Manifest:
    """The manifest of the data, whose shards all lie verified in the store; one shard is in memory at a time.

    Several processes may ask at once: one works, the others wait and check. Bad data is refused before any shard.
    """
    data = config.Data.model_validate(settings)
    plugin = plugins.load("data", data.name)
    with closing(plugin.open_source(plugin.Params.model_validate(data.params), root)) as source:
        if source.task != (told := plugins.task(data.name, data.params)):
            raise DataError(f"{plugin.__file__}: task(params) says {told}, but open_source gave {source.task}")
        return _stored(data, source, Path(str(plugin.__file__)), root, work)


def _stored(data: config.Data, source: Source, plugin: Path, root: Path, work: Path) -> Manifest:
    parts = assign(source, data)
    first = read_rows(source, parts["train"].origin, parts["train"].rows[:1])
    samples = min(data.shard_samples, max(1, SHARD_BYTES // first.nbytes))
    folder = work / "data" / _store(data, source, plugin)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        tally, made = Tally(source, first, parts), []
        for shard in _shown(_cuts(parts, samples), data.name):
            path, part = folder / shard.name, parts[shard.split]
            stored = read_shard(path)
            if stored is None or not _fits(stored, first, part.targets[shard.start : shard.stop]):
                stored = _make(path, source, part, shard, first)
                made.append(path)
                log.info("%s: %s samples %d to %d written", data.name, shard.split, shard.start, shard.stop)
            tally.add(shard, stored)
        _refuse_changed(source, made)
        manifest = tally.manifest(folder.name, data, root)
        for path in set(folder.glob("*.safetensors")) - {folder / shard.name for shard in manifest.shards}:
            path.unlink()  # an interrupted preparation had another shard size
        manifest.save(folder / "manifest.json")
    counts = ", ".join(f"{split} {summary.samples}" for split, summary in manifest.splits.items())
    log.info("%s: %s; %d of %d shards written; %s", data.name, counts, len(made), len(manifest.shards), folder)
    return manifest


def _store(data: config.Data, source: Source, plugin: Path) -> str:
    """Name of the folder: another for other settings, other sources or another text of the plugin."""
    parts = {
        "settings": config.identity(data),
        "stage": plan.STAGES["preprocess"],
        "sources": sorted(file.digest for file in source.files),
        "content": source.content,
        "targets": {split: content_digest(targets) for split, targets in source.targets.items()},
        "plugin": SourceFile.of(plugin).digest,
    }
    return config.digest(parts, "everstep-store")


def _cuts(parts: Mapping[str, Part], shard_samples: int) -> list[Shard]:
    """The shards to make, without their digests."""
    return [
        Shard(split=split, start=start, stop=min(start + shard_samples, len(part.rows)), digest="")
        for split, part in parts.items()
        for start in range(0, len(part.rows), shard_samples)
    ]


class Tally:
    """What a manifest says of the shards, added up one shard at a time."""

    def __init__(self, source: Source, first: np.ndarray, parts: Mapping[str, Part]) -> None:
        self.source, self.first = source, first
        self.shards: list[Shard] = []
        self.samples = Counter[str]()
        self.counts = {split: Counter[int]() for split in SPLITS}
        self.hashers = {split: (blake2b(), blake2b()) for split in SPLITS}
        self.moments = Moments(0 if source.task == "language" else first.shape[1])
        self.target_moments = Moments(0)
        if source.task == "regression":
            self.target_moments = Moments(parts["train"].targets.shape[1])

    def add(self, shard: Shard, stored: Stored) -> None:
        """The next shard of its split is counted in."""
        self.shards.append(shard.model_copy(update={"digest": stored.digest}))
        self.samples[shard.split] += len(stored.targets)
        if self.source.task == "classification":
            self.counts[shard.split].update(stored.targets.tolist())
        for hasher, array in zip(self.hashers[shard.split], (stored.inputs, stored.targets), strict=True):
            hasher.update(bytes_of(array))
        if shard.split == "train":
            self.moments.add(stored.inputs)
            self.target_moments.add(stored.targets)

    def manifest(self, store: str, data: config.Data, root: Path) -> Manifest:
        """The manifest of all the shards."""
        source = self.source
        mean, std = self.moments.mean_and_std(source.scale)
        has_categories = [bool(feature.categories) for feature in source.features] or [False] * len(mean)
        target_mean, target_std = self.target_moments.mean_and_std(1.0)
        manifest = Manifest(
            digest="",
            store=store,
            data=data.model_dump(mode="json"),
            task=source.task,
            input_shape=self.first.shape[1:],
            dtype=self.first.dtype.name,
            classes=source.classes,
            features=source.features,
            vocabulary=source.vocabulary,
            scale=source.scale,
            mean=tuple(0.0 if is_set else value for value, is_set in zip(mean, has_categories, strict=True)),
            std=tuple(1.0 if is_set else value for value, is_set in zip(std, has_categories, strict=True)),
            target_mean=target_mean,
            target_std=target_std,
            splits={split: self._summary(split) for split in SPLITS},
            shards=tuple(self.shards),
            sources={_relative(file.path, root): file.digest for file in source.files},
        )
        return manifest.model_copy(update={"digest": manifest.content_digest()})

    def _summary(self, split: str) -> SplitSummary:
        whole = blake2b(b"".join(hasher.digest() for hasher in self.hashers[split]))
        per_class = tuple(self.counts[split][number] for number in range(len(self.source.classes)))
        return SplitSummary(samples=self.samples[split], per_class=per_class, digest=whole.hexdigest())


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time is inside; the others wait and say so."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for the process that prepares %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _shown(shards: Sequence[Shard], name: str) -> Iterator[Shard]:
    """The same shards, with a progress bar when a person is watching."""
    if not sys.stderr.isatty():
        yield from shards
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(shards, description=name, console=Console(stderr=True), transient=True)


def _make(path: Path, source: Source, part: Part, shard: Shard, first: np.ndarray) -> Stored:
    """A shard, written whole."""
    rows, targets = part.rows[shard.start : shard.stop], part.targets[shard.start : shard.stop]
    stored = Stored.of(read_rows(source, part.origin, rows), targets)
    if not _fits(stored, first, targets):
        raise DataError(
            f"{shard.split} samples {shard.start} to {shard.stop} are {stored.inputs.dtype} {stored.inputs.shape[1:]}, "
            f"the first of train is {first.dtype} {first.shape[1:]}; all inputs have one shape"
        )
    write_shard(path, stored)
    return stored


def _fits(stored: Stored, first: np.ndarray, targets: np.ndarray) -> bool:
    is_alike = (stored.inputs.dtype, stored.inputs.shape[1:]) == (first.dtype, first.shape[1:])
    return is_alike and len(stored.inputs) == len(targets) and np.array_equal(stored.targets, targets)


def _refuse_changed(source: Source, made: Sequence[Path]) -> None:
    changed = [file.path for file in source.files if not file.is_unchanged()]
    if changed:
        for path in made:
            path.unlink()
        raise DataError(f"{changed[0]}: changed while it was being read; run again when it is complete")
