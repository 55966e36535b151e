"""The shards of a data set are made: a crash costs those being written, and what verifies is kept."""

from __future__ import annotations

import logging
import math
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from workflow_lib import config, plan, plugins
from workflow_lib.data.copies import look_at
from workflow_lib.data.manifest import Manifest
from workflow_lib.data.prefetch import prefetch
from workflow_lib.data.rare_classes import without_rare
from workflow_lib.data.shard_writer import PreparedShard, _cuts, _ensured, _refuse_changed, in_turn
from workflow_lib.data.source import Source, content_digest, read_rows, refuse_unfit
from workflow_lib.data.splits import Part, assign
from workflow_lib.data.tally import Tally
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
        with plugins.user_code_errors(f"{name}: open_source()"):
            given = plugin.open_source(params, root)
        with closing(_blamed(given, name)) as source:
            yield source
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _blamed(given: Source, name: str) -> Source:
    """The source, checked; what its functions raise is told with the data set's name."""
    refuse_unfit(given)
    names = ("read", "close") if given.learn_from is None else ("read", "close", "learn_from")
    return replace(given, **{f: plugins.user_code_errors(f"{name}: {f}()")(getattr(given, f)) for f in names})


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
        "plugin": plugins.code(plugin).digest,
    }
    folder = work / "data" / _store(made_by, source)
    with _locked(folder):
        cuts, tally, made = _cuts(parts, samples, made_by, source), Tally(source, first, parts), []
        ensure = partial(_ensured, folder=folder, source=in_turn(source), parts=parts, first=first)
        with closing(prefetch(ensure, cuts, threads if threads > 1 else 0)) as ensured:
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


def _locked(folder: Path) -> Lease:
    """One process at a time is inside; the others wait, as long as it lives, and say so."""
    return Lease.acquire(folder, uuid.uuid4().hex, timeout_s=LEASE_TIMEOUT_S, wait_s=math.inf)


def _shown(results: Iterable[PreparedShard], name: str, total: int) -> Iterator[PreparedShard]:
    """The same results, with a progress bar when a person is watching."""
    if not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(results, description=name, total=total, console=Console(stderr=True), transient=True)
