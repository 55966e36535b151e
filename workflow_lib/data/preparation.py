"""The shards of a data set are made: a crash costs those being written, and what verifies is kept."""

from __future__ import annotations

import logging
import math
import os
import sys
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np

from workflow_lib import config, plan, plugins
from workflow_lib.data.copies import look_at, row_digests
from workflow_lib.data.manifest import SPLITS, Manifest, Shard, SplitSummary
from workflow_lib.data.prefetch import ahead
from workflow_lib.data.rare import without_rare
from workflow_lib.data.shard import Stored, is_whole, map_shard, write_shard
from workflow_lib.data.source import Source, blake2b, bytes_of, content_digest, read_rows, refuse_unfit
from workflow_lib.data.splits import Part, assign
from workflow_lib.data.statistics import Moments
from workflow_lib.errors import ConfigError, DataError
from workflow_lib.store.lease import Lease

log = logging.getLogger(__name__)

LEASE_TIMEOUT_S = 60.0
SHARD_BYTES = 1 << 26  # largest shard, whatever its number of samples: a few of them fit the memory of any job


def preprocess(experiment: config.Experiment, data_id: str, work: Path, output: Path, threads: int = 1) -> None:
    """The data of a plan is in the store, and its manifest in the output."""
    runs = [run.config for run in plan.expand(experiment)]
    if experiment.tune is not None:
        runs.append(plan.tuned_base(experiment))
    used = {plan.data_id(run): plan.data_settings(run) for run in runs}
    if data_id not in used:
        raise ConfigError(f"experiment `{experiment.name}` has no data {data_id}; it has {', '.join(sorted(used))}")
    prepare(used[data_id], Path.cwd(), work, threads, output)


def prepare(
    settings: Mapping[str, Any], root: Path, work: Path, threads: int = 1, output: Path | None = None
) -> Manifest:
    """The manifest of the data, whose shards all lie verified in the store; each thread has one shard in memory.

    It is written to ``output``, too, before anybody else may own the data: from then on, a result names it.
    Several processes may ask at once: one works, the others wait and check. Bad data is refused before any shard.
    """
    data = config.Data.model_validate(settings)
    plugin = plugins.load("data", data.name)
    with _opened(data, plugin, root) as opened:
        source = without_rare(opened, data)
        if source.task != (told := plugins.task(data.name, data.params)):
            raise DataError(f"{plugin.__file__}: task(params) says {told}, but open_source gave {source.task}")
        return _stored(data, source, plugin, root, work, threads, output)


def ensure(manifest: Manifest, work: Path) -> Manifest:
    """The manifest, with its folder of shards in the store: one that was lost is made again from the sources.

    Raises DataError where the sources, or the code of the data set, now give other data.
    """
    if (work / "data" / manifest.store).is_dir():
        return manifest
    log.warning("the shards of data %s are lost, and are made again", manifest.digest[:12])
    made = prepare(manifest.data, Path.cwd(), work)
    if made.digest != manifest.digest:
        raise DataError(
            f"the shards of data {manifest.digest[:12]} are lost, and its sources now give other data "
            f"({made.digest[:12]}): run preprocess again (snakemake --forcerun preprocess)"
        )
    return made


@contextmanager
def _opened(data: config.Data, plugin: ModuleType, root: Path) -> Iterator[Source]:
    """The source, until the block ends; what its code raises or gives in vain is told with the data set's name."""
    name, params = f"data set `{data.name}`", plugin.Params.model_validate(data.params)
    try:
        with plugins.blaming(f"{name}: open_source()"):
            given = plugin.open_source(params, root)
        with closing(_blamed(given, name)) as source:
            yield source
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _blamed(given: Source, name: str) -> Source:
    """The source, checked; what its functions raise is told with the data set's name."""
    refuse_unfit(given)
    names = ("read", "close") if given.learn_from is None else ("read", "close", "learn_from")
    return replace(given, **{f: plugins.blaming(f"{name}: {f}()")(getattr(given, f)) for f in names})


def _drawn(source: Source, data: config.Data) -> tuple[Source, dict[str, Part]]:
    """The splits, and the source as it is known from what is left to train."""
    parts = assign(source, data)
    train = parts["train"].rows
    if source.learn_from is not None and len(train) < len(source.targets["train"]):
        source = _blamed(source.learn_from(train), f"data set `{data.name}`")
    return source, parts


def _stored(
    data: config.Data,
    source: Source,
    plugin: ModuleType,
    root: Path,
    work: Path,
    threads: int,
    output: Path | None,
) -> Manifest:
    source, parts = _drawn(source, data)
    first = read_rows(source, parts["train"].origin, parts["train"].rows[:1])
    samples = min(data.shard_samples, max(1, SHARD_BYTES // first.nbytes))
    made_by = {
        "settings": config.identity(data),
        "stage": plan.STAGES["preprocess"],
        "plugin": plugins.text_digest(plugin),
    }
    folder = work / "data" / _store(made_by, source)
    with _locked(folder):
        cuts, tally, made = _cuts(parts, samples, made_by, source), Tally(source, first, parts), []
        ensure = partial(_ensured, folder=folder, source=in_turn(source), parts=parts, first=first)
        with closing(ahead(ensure, cuts, threads if threads > 1 else 0)) as ensured:
            for number, (shard, one) in enumerate(zip(cuts, _shown(ensured, data.name, len(cuts)), strict=True), 1):
                tally.add(shard, one)
                if one.is_new:
                    made.append(folder / shard.name)
                    what = (data.name, shard.split, shard.start, shard.stop, number, len(cuts))
                    log.info("%s: %s samples %d to %d written (%d of %d shards)", *what)
        _refuse_changed(source, made)
        look_at(source, parts, {split: np.concatenate(digests) for split, digests in tally.digests.items()})
        manifest = tally.manifest(folder.name, data, root)
        for path in set(folder.glob("*.safetensors")) - {folder / shard.name for shard in manifest.shards}:
            path.unlink()  # an interrupted preparation had another shard size
        manifest.save(folder / "manifest.json")
        if output is not None:
            manifest.save(output)
    counts = ", ".join(f"{split} {summary.samples}" for split, summary in manifest.splits.items())
    log.info("%s: %s; %d of %d shards written; %s", data.name, counts, len(made), len(manifest.shards), folder)
    return manifest


def _store(made_by: Mapping[str, Any], source: Source) -> str:
    """Name of the folder: another for other settings, other sources or another text of the plugin and its helpers."""
    parts = {
        **made_by,
        "sources": sorted(file.digest for file in source.files),
        "content": source.content,
        "targets": {split: content_digest(targets) for split, targets in source.targets.items()},
    }
    return config.digest(parts, "everstep-store")


def _cuts(parts: Mapping[str, Part], samples: int, made_by: Mapping[str, Any], source: Source) -> list[Shard]:
    """The shards to make, without the digests of their content."""
    cuts = []
    for split, part in parts.items():
        digests, rows_in_all = source.row_digests.get(part.origin), len(source.targets[part.origin])
        if digests is not None and len(digests) != rows_in_all:
            given = f"Source.row_digests has {len(digests)} for `{part.origin}`"
            raise DataError(f"{given}; allowed: one for each of its {rows_in_all} rows")
        for start in range(0, len(part.rows), samples):
            rows = part.rows[start : start + samples]
            files = [str(digests[row]) for row in rows] if digests is not None else []
            made_from = config.digest({**made_by, "files": files}, "everstep-shard") if files else ""
            cuts.append(Shard(split=split, start=start, stop=start + len(rows), digest="", made_from=made_from))
    return cuts


class Tally:
    """What a manifest says of the shards, added up one shard at a time."""

    def __init__(self, source: Source, first: np.ndarray, parts: Mapping[str, Part]) -> None:
        self.source, self.first = source, first
        self.shards: list[Shard] = []
        self.samples = Counter[str]()
        self.counts = {split: np.zeros(len(source.classes), np.int64) for split in SPLITS}
        self.hashers = {split: (blake2b(), blake2b()) for split in SPLITS}
        self.digests: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        self.moments, self.target_moments = _moments(source, first, parts["train"].targets)

    def add(self, shard: Shard, one: Ensured) -> None:
        """The next shard of its split is counted in."""
        stored = one.stored
        self.shards.append(shard.model_copy(update={"digest": stored.digest}))
        self.samples[shard.split] += len(stored.targets)
        if self.source.task == "classification":
            self.counts[shard.split] += np.bincount(stored.targets, minlength=len(self.source.classes))
        for hasher, array in zip(self.hashers[shard.split], (stored.inputs, stored.targets), strict=True):
            hasher.update(bytes_of(array))
        self.digests[shard.split].append(one.digests)
        self.moments.merge(one.moments)
        self.target_moments.merge(one.target_moments)

    def manifest(self, store: str, data: config.Data, root: Path) -> Manifest:
        """The manifest of all the shards."""
        source = self.source
        mean, std = self.moments.mean_and_std(source.scale)
        has_categories = [bool(feature.categories) for feature in source.features] or [False] * len(mean)
        target_mean, target_std = self.target_moments.mean_and_std(1.0)
        if constant := [] if source.features else self.moments.constant_channels():  # a table tells it of its columns
            log.warning("channels %s of the inputs never vary in train", ", ".join(map(str, constant[:20])))
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
        per_class = tuple(self.counts[split].tolist())
        return SplitSummary(samples=self.samples[split], per_class=per_class, digest=whole.hexdigest())


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _locked(folder: Path) -> Lease:
    """One process at a time is inside; the others wait, as long as it lives, and say so."""
    return Lease.acquire(folder, uuid.uuid4().hex, timeout_s=LEASE_TIMEOUT_S, wait_s=math.inf)


def _shown(results: Iterable[Ensured], name: str, total: int) -> Iterator[Ensured]:
    """The same results, with a progress bar when a person is watching."""
    if not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(results, description=name, total=total, console=Console(stderr=True), transient=True)


def in_turn(source: Source) -> Source:
    """The source, which threads may read at once: if it did not say so itself, each waits for the one before."""
    if source.is_thread_safe:
        return source
    turn, read = Lock(), source.read

    def alone(split: str, rows: np.ndarray) -> np.ndarray:
        with turn:
            return read(split, rows)

    return replace(source, read=alone)


@dataclass(frozen=True)
class Ensured:
    """A shard that lies in the store, verified; what it adds to the statistics, if it is of train."""

    stored: Stored
    is_new: bool
    digests: np.ndarray  # of each sample
    moments: Moments
    target_moments: Moments


def _ensured(shard: Shard, folder: Path, source: Source, parts: Mapping[str, Part], first: np.ndarray) -> Ensured:
    """The shard, as it is where it is whole and has these targets, here or in earlier data, else made again."""
    path, part = folder / shard.name, parts[shard.split]
    targets = part.targets[shard.start : shard.stop]
    if shard.made_from and not path.exists():
        _take_over(path)
    stored = map_shard(path)
    is_new = stored is None or not _fits(stored, first, targets) or not is_whole(stored)
    if is_new:
        _make(path, source, part, shard, first)
        stored = map_shard(path)
    if stored is None:
        raise DataError(f"{path}: gone or changed while the data is prepared; leave the folder alone, and run again")
    moments, target_moments = _moments(source, first, targets)
    if shard.split == "train":
        moments.add(stored.inputs)
        target_moments.add(stored.targets)
    return Ensured(stored, is_new, row_digests(stored.inputs), moments, target_moments)


def _take_over(path: Path) -> None:
    """The shard is linked from earlier data that is complete and has one of this name, made from the same."""
    for other in path.parent.parent.glob(f"*/{path.name}"):
        if not (other.parent / "manifest.json").exists():
            continue  # its files may have changed while they were read: that is looked at last
        with suppress(OSError):  # gone in this moment, or a disk without links: it is made anew
            os.link(other, path)
            return


def _moments(source: Source, first: np.ndarray, targets: np.ndarray) -> tuple[Moments, Moments]:
    """Statistics of nothing yet: of the inputs, by channel, and of the targets of a regression, by output."""
    channels = 0 if source.task == "language" else first.shape[1]
    return Moments(channels), Moments(targets.shape[1] if source.task == "regression" else 0)


def _make(path: Path, source: Source, part: Part, shard: Shard, first: np.ndarray) -> None:
    """The shard is written, whole."""
    rows, targets = part.rows[shard.start : shard.stop], part.targets[shard.start : shard.stop]
    inputs = read_rows(source, part.origin, rows)
    if (inputs.dtype, inputs.shape[1:]) != (first.dtype, first.shape[1:]):
        raise DataError(
            f"{shard.split} samples {shard.start} to {shard.stop} are {inputs.dtype} {inputs.shape[1:]}, "
            f"the first of train is {first.dtype} {first.shape[1:]}; all inputs have one shape"
        )
    write_shard(path, inputs, targets)


def _fits(stored: Stored, first: np.ndarray, targets: np.ndarray) -> bool:
    is_alike = (stored.inputs.dtype, stored.inputs.shape[1:]) == (first.dtype, first.shape[1:])
    return is_alike and len(stored.inputs) == len(targets) and np.array_equal(stored.targets, targets)


def _refuse_changed(source: Source, made: Sequence[Path]) -> None:
    changed = [file.path for file in source.files if not file.is_unchanged()]
    if changed:
        for path in made:
            path.unlink()
        raise DataError(f"{changed[0]}: changed while it was being read; run again when it is complete")
