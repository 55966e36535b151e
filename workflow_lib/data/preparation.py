"""Prepare a data set: verified shards in the store, then the manifest. A crash costs only the shards being written."""

from __future__ import annotations

import logging
import math
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from workflow_lib import config, plan, plugins
from workflow_lib.data import in_place
from workflow_lib.data.copies import check_copies
from workflow_lib.data.manifest import Manifest
from workflow_lib.data.names import names_file, write_names, write_names_in_place
from workflow_lib.data.opening import checked, opened
from workflow_lib.data.prefetch import prefetch
from workflow_lib.data.rare_classes import apply_min_class_count
from workflow_lib.data.shard_writer import PreparedShard, check_unchanged, plan_shards, prepare_shard, with_safe_read
from workflow_lib.data.source import Source, content_digest, read_rows
from workflow_lib.data.splits import Part, assign
from workflow_lib.data.tally import Tally
from workflow_lib.errors import ConfigError, DataError
from workflow_lib.files import write_atomic
from workflow_lib.store import layout
from workflow_lib.store.lease import Lease

log = logging.getLogger(__name__)

LEASE_TIMEOUT_S = 60.0
SHARD_BYTES = 1 << 26  # largest shard, whatever its number of samples: a few of them fit the memory of any job


def preprocess(experiment: config.Experiment, data_id: str, work: Path, output: Path, threads: int = 1) -> None:
    """Prepare the data with this id in the plan of the experiment, and write its manifest to the output."""
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
    """Return the manifest of the data, with all its shards verified in the store.

    Each thread has one shard in memory. If several processes prepare the same data, one works, and the others wait
    and verify. Targets and splits are checked before the first shard is written, inputs when they are read. The
    manifest is also written to `output` while the lease is held, so that `everstep clean` finds the data in use.
    """
    data = config.Data.model_validate(settings)
    plugin = plugins.load("data", data.name)
    with opened(data, plugin, root) as given:
        source = apply_min_class_count(given, data)
        if source.task != (task := plugins.task(data.name, data.params)):
            raise DataError(f"{plugin.__file__}: task(params) says {task}, but open_source gave {source.task}")
        prepare_source = _prepare_source if source.mapped is None else _prepare_in_place
        return prepare_source(data, source, plugin, root, work, threads, output)


def ensure(manifest: Manifest, work: Path) -> Manifest:
    """Return the manifest with the shards in the store; prepare them again if the folder is missing or incomplete.

    While another process prepares the folder, wait for it: the manifest is the last file written there. Raises
    DataError if the source files, or the code of the data set, now give other data.
    """
    stored = _complete(layout.store_dir(work, manifest.store))
    if stored is not None and stored.digest == manifest.digest:
        return manifest.model_copy(update={"shards": stored.shards})
    log.warning("the shards of data %s are missing or incomplete; they are prepared again", manifest.digest[:12])
    prepared = prepare(manifest.data, Path.cwd(), work)
    if prepared.digest != manifest.digest:
        raise DataError(
            f"the shards of data {manifest.digest[:12]} are missing, and its sources now give other data "
            f"({prepared.digest[:12]}): run preprocess again (snakemake --forcerun preprocess)"
        )
    return prepared


def _complete(folder: Path) -> Manifest | None:
    """Return the manifest in a folder of the store; None if the folder is missing or incomplete."""
    try:
        return Manifest.load(layout.store_manifest(folder))
    except DataError:
        return None


def _draw_splits(source: Source, data: config.Data) -> tuple[Source, dict[str, Part]]:
    """Return the source, with its categories learned from the rows that remain in train, and the splits."""
    parts = assign(source, data)
    train = parts["train"].rows
    if source.learn_from is not None and len(train) < len(source.targets["train"]):
        source = checked(source.learn_from(train), f"data set `{data.name}`")
    return source, parts


def _prepare_source(
    data: config.Data,
    source: Source,
    plugin: ModuleType,
    root: Path,
    work: Path,
    threads: int,
    output: Path | None,
) -> Manifest:
    source, parts = _draw_splits(source, data)
    first = read_rows(source, parts["train"].origin, parts["train"].rows[:1])
    sample_bytes = first.nbytes + (math.prod(first.shape[2:]) if source.kind == "masks" else 0)
    samples = min(data.shard_samples, max(1, SHARD_BYTES // sample_bytes))
    made_by = _made_by(data, plugin)
    folder = layout.store_dir(work, _store_name(made_by, source))
    with _lock(folder):
        if (stored := _complete(folder)) is not None:
            # manifests of other experiments, maybe with another `shard_samples`, name the shards that are there
            samples = max(shard.stop - shard.start for shard in stored.shards)
        tally = Tally(source, first, parts["train"].targets)
        shards, written = plan_shards(parts, samples, made_by, source), []
        work_on = partial(prepare_shard, folder=folder, source=with_safe_read(source), parts=parts, first=first)
        with closing(prefetch(work_on, shards, threads if threads > 1 else 0)) as results:
            pairs = zip(shards, _with_progress(results, data.name, len(shards)), strict=True)
            for number, (shard, prepared) in enumerate(pairs, 1):
                tally.add(shard, prepared)
                if prepared.is_new:
                    written.append(folder / shard.name)
                    what = (data.name, shard.split, shard.start, shard.stop, number, len(shards))
                    log.info("%s: %s samples %d to %d written (%d of %d shards)", *what)
        check_unchanged(source, written)
        check_copies(source, parts, {split: np.concatenate(digests) for split, digests in tally.digests.items()})
        manifest = tally.manifest(folder.name, data, root)
        for path in set(folder.glob("*.safetensors")) - {folder / shard.name for shard in manifest.shards}:
            path.unlink()  # left by an interrupted preparation with another shard size
        names = "" if output is None else write_names(names_file(output), source, parts)
        _save(manifest, names, source, folder, output)
    counts = ", ".join(f"{split} {summary.samples}" for split, summary in manifest.splits.items())
    log.info("%s: %s; %d of %d shards written; %s", data.name, counts, len(written), len(manifest.shards), folder)
    return manifest


def _prepare_in_place(
    data: config.Data,
    source: Source,
    plugin: ModuleType,
    root: Path,
    work: Path,
    threads: int,
    output: Path | None,
) -> Manifest:
    manifest, arrays, splits = in_place.describe(data, source, plugin, root, work, threads, _made_by(data, plugin))
    folder = layout.store_dir(work, manifest.store)
    with _lock(folder):
        in_place.write_index(folder, arrays)
        names = "" if output is None else write_names_in_place(names_file(output), source, splits)
        _save(manifest, names, source, folder, output)
    counts = ", ".join(f"{split} {summary.samples}" for split, summary in manifest.splits.items())
    log.info("%s: %s; %s", data.name, counts, folder)
    return manifest


def _save(manifest: Manifest, names: str, source: Source, folder: Path, output: Path | None) -> None:
    """Write the tokenizer, then the manifest, last to the output of the rule, beside which is the table of samples."""
    if source.tokenizer:
        write_atomic(layout.store_tokenizer(folder), source.tokenizer)
    manifest.save(layout.store_manifest(folder))
    if output is not None:
        manifest.model_copy(update={"names": names}).save(output)


def _made_by(data: config.Data, plugin: ModuleType) -> dict[str, Any]:
    return {
        "settings": config.identity(data),
        "stage": plan.STAGES["preprocess"],
        "plugin": plugins.code(plugin).digest,
    }


def _store_name(made_by: Mapping[str, Any], source: Source) -> str:
    """Return the name of the folder: a digest of settings, source files, and the code of the data set."""
    parts = {
        **made_by,
        "sources": sorted(file.digest for file in source.files),
        "content": source.content,
        "targets": {split: content_digest(targets) for split, targets in source.targets.items()},
    }
    return config.digest(parts, "everstep-store")


def _lock(folder: Path) -> Lease:
    """Return the lease of the folder; while another live process holds it, log that and wait without a limit."""
    return Lease.acquire(folder, uuid.uuid4().hex, timeout_s=LEASE_TIMEOUT_S, wait_s=math.inf)


def _with_progress(results: Iterable[PreparedShard], name: str, total: int) -> Iterator[PreparedShard]:
    """Yield the results; show a progress bar if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(results, description=name, total=total, console=Console(stderr=True), transient=True)
