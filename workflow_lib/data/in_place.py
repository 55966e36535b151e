"""Data that is read in place: `preprocess` writes digests and the rows of the splits, but no copy of the data.

work/data/<store>/index.safetensors   digests of the parts of the files, runs of rows, and `Source.index`
work/data/<store>/manifest.json
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from workflow_lib import config, plugins
from workflow_lib.data import part_digests
from workflow_lib.data.arrays import map_arrays, write_arrays
from workflow_lib.data.manifest import PREPARE_AGAIN, SPLITS, InPlace, Manifest
from workflow_lib.data.mapped_files import MappedFiles, parts_of
from workflow_lib.data.opening import errors_of, open_source
from workflow_lib.data.prefetch import prefetch
from workflow_lib.data.rare_classes import apply_min_class_count
from workflow_lib.data.rows import Rows, draw_runs
from workflow_lib.data.shard_writer import with_safe_read
from workflow_lib.data.source import Source, content_digest, read_rows
from workflow_lib.data.splits import COUNTED, assign, check_classes, checked_targets, class_counts, stored_targets
from workflow_lib.data.tally import Tally, relative
from workflow_lib.errors import ConfigError, DataError
from workflow_lib.files import blake2b, compact_json
from workflow_lib.store import layout
from workflow_lib.text import byte_size, count

log = logging.getLogger(__name__)

MOST_DRAWN = 1 << 20  # rows whose splits are drawn one by one, as for shards; more are drawn in runs
MOST_MEASURED = 1 << 20  # rows of train of which mean and standard deviation are computed
READ_ROWS = 1024
PROBED_ROWS = 16


@dataclass(frozen=True)
class SplitRows:
    """A split of a source that is read in place: rows of the source's split `origin`."""

    source: Source
    origin: str
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def inputs(self, places: np.ndarray) -> np.ndarray:
        """Return the inputs at these places, verified. Raises DataError if a file changed."""
        rows, inverse = np.unique(self.rows[places], return_inverse=True)  # `read` takes ascending rows
        with _files_of(self.source).watched():
            inputs = read_rows(self.source, self.origin, rows)
        return inputs[inverse]

    def copy(self, places: np.ndarray, target: np.ndarray) -> None:
        """Copy the inputs at these places into the target."""
        target[:] = self.inputs(places)

    def targets(self, places: np.ndarray) -> np.ndarray:
        """Return the targets at these places, as they are stored in shards."""
        return stored_targets(self.source, self.origin, np.asarray(self.source.targets[self.origin][self.rows[places]]))

    @cached_property
    def all_targets(self) -> np.ndarray:
        """The targets of the split."""
        return self.targets(np.arange(len(self)))

    def probe(self) -> str:
        """Return the digest of a few samples: it differs if a decoder gives other values for the same bytes."""
        places = Rows(np.array([[0, len(self)]])).spaced(PROBED_ROWS)
        return content_digest(self.inputs(places), self.targets(places))


def describe(
    data: config.Data,
    source: Source,
    plugin: ModuleType,
    root: Path,
    work: Path,
    threads: int,
    made_by: Mapping[str, Any],
) -> tuple[Manifest, dict[str, np.ndarray], dict[str, SplitRows]]:
    """Return the manifest of the data, with all its files verified, the arrays of its index, and its splits."""
    files = _files_of(source)
    digests = part_digests.part_digests(
        files, config.digest(dict(made_by), "everstep-parts"), layout.parts_dir(work), threads
    )
    files.verify_with(files.sizes, digests)
    source = with_safe_read(source)
    splits = draw(source, data)
    first = splits["train"].inputs(np.arange(1))
    tally = Tally(source, first, splits["train"].targets(np.arange(1)))
    for name, split in splits.items():
        tally.samples[name] = len(split)
        tally.counts[name] = _class_counts(split)
    _measure(tally, splits["train"], first, threads)
    for number in range(len(files.paths)):
        files.check_unchanged(number)
    arrays = {f"rows.{name}": split.rows.runs for name, split in splits.items()}
    arrays["parts"] = np.concatenate([np.empty((0, 16), np.uint8), *digests])
    arrays["sizes"] = np.array(files.sizes, np.int64)
    arrays |= {f"index.{name}": np.asarray(array) for name, array in source.index.items()}
    sources = [part_digests.file_digest(*pair) for pair in zip(files.sizes, digests, strict=True)]
    seen = {
        "params": _without_paths(data),
        "stage": made_by["stage"],
        "code": made_by["plugin"],
        "content": source.content,
        "files": sources,
    }
    described = tally.manifest(_store_name(made_by, seen, arrays), data, root)
    summaries = {
        name: described.splits[name].model_copy(update={"digest": _split_digest(seen, split)})
        for name, split in splits.items()
    }
    names = tuple(relative(path, root) for path in files.paths)
    in_place = InPlace(
        code=made_by["plugin"],
        index=_index_digest(arrays),
        files=names,
        probes={name: split.probe() for name, split in splits.items()},
    )
    update = {"splits": summaries, "sources": dict(zip(names, sources, strict=True)), "in_place": in_place}
    manifest = described.model_copy(update=update)
    total, many = byte_size(sum(files.sizes)), count(len(names), "file")
    log.info(
        "%s: %s of %s verified, in %s; they are read in place",
        data.name,
        total,
        many,
        count(len(arrays["parts"]), "part"),
    )
    return manifest.model_copy(update={"digest": manifest.content_digest()}), arrays, splits


def write_index(folder: Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Write the index if it is missing or damaged; return True if it was written."""
    path, digest = layout.store_index(folder), _index_digest(arrays)
    found = map_arrays(path)
    if found is not None and _index_digest(found[0]) == digest:
        return False
    write_arrays(path, arrays, digest)
    return True


def open_split(manifest: Manifest, place: InPlace, split: str, work: Path, root: Path) -> SplitRows:
    """Return a split whose rows are read in place. Raises DataError if files, code or decoders have changed."""
    data = config.Data.model_validate(manifest.data)
    plugin = plugins.load("data", data.name)
    path = layout.store_index(layout.store_dir(work, manifest.store))
    with errors_of(data.name):
        if plugins.code(plugin).digest != place.code:
            raise DataError(f"its code has changed since the data was prepared; {PREPARE_AGAIN}")
        found = map_arrays(path)
        if found is None or found[1] != place.index or _index_digest(found[0]) != place.index:
            raise DataError(f"{path}: the index is damaged or missing; {PREPARE_AGAIN}")
        arrays, _ = found
        index = {name.removeprefix("index."): array for name, array in arrays.items() if name.startswith("index.")}
        source = with_safe_read(apply_min_class_count(open_source(data, plugin, root, index), data))
        files = _files_of(source)
        if (names := tuple(relative(path, root) for path in files.paths)) != place.files:
            changed = sorted(set(names) ^ set(place.files)) or list(names)
            raise DataError(f"{changed[0]}: the files are not those that were prepared; {PREPARE_AGAIN}")
        sizes: list[int] = arrays["sizes"].tolist()
        ends = np.cumsum([parts_of(size) for size in sizes], dtype=np.int64)
        files.verify_with(sizes, np.split(arrays["parts"], ends[:-1]) if sizes else [])
        origin = split if split in source.targets else "train"
        rows = SplitRows(source, origin, Rows(np.array(arrays[f"rows.{split}"])))
        if rows.probe() != place.probes[split]:
            raise DataError(
                f"the data set reads other values than when the data was prepared, from the same bytes of its files: a "
                f"package that decodes them has changed. Install its earlier version, or {PREPARE_AGAIN}"
            )
    return rows


def draw(source: Source, data: config.Data) -> dict[str, SplitRows]:
    """Return the rows of train, val and test."""
    if max(map(len, source.targets.values()), default=0) <= MOST_DRAWN:
        return {name: SplitRows(source, part.origin, Rows.of(part.rows)) for name, part in assign(source, data).items()}
    if data.folds is not None:
        raise ConfigError(
            f"data.folds: folds are drawn row by row, and of data read in place only for up to {MOST_DRAWN:,} rows: "
            "splits of more are runs of neighbouring rows. Leave out data.folds (sweep.folds)"
        )
    for name, targets in source.targets.items():
        checked_targets(source, name, targets[Rows(np.array([[0, len(targets)]])).spaced(MOST_DRAWN)])
    fractions = {"val": data.validation_fraction, "test": data.test_fraction}
    missing = {name: fraction for name, fraction in fractions.items() if name not in source.targets}
    drawn = draw_runs(len(source.targets["train"]), missing, data.split_seed, source.group_rows)
    own = {name: Rows(np.array([[0, len(targets)]])) for name, targets in source.targets.items()}
    found = {name: SplitRows(source, "train" if name in missing else name, (own | drawn)[name]) for name in SPLITS}
    for name, split in found.items():
        counts = _class_counts(split) if source.kind in COUNTED else None
        check_classes(name, len(split), counts, source, is_drawn=bool(missing) and split.origin == "train")
    return found


def _files_of(source: Source) -> MappedFiles:
    """Return the files of the source. Raises DataError if it has none, which may have been otherwise before."""
    if source.mapped is None:
        raise DataError(f"open_source gave a Source without `mapped`, other than when it was prepared; {PREPARE_AGAIN}")
    return source.mapped


def _class_counts(split: SplitRows) -> np.ndarray:
    counts = np.zeros(len(split.source.classes), np.int64)
    if split.source.kind in COUNTED:
        for places in Rows(np.array([[0, len(split)]])).chunks():
            counts += class_counts(split.source, split.targets(places))
    return counts


def _measure(tally: Tally, train: SplitRows, first: np.ndarray, threads: int) -> None:
    """Add the training samples to mean and standard deviation: all of them, or MOST_MEASURED evenly spaced ones."""
    if train.source.kind == "tokens":
        return
    if len(train) > MOST_MEASURED:
        log.warning("mean and standard deviation are those of %d evenly spaced training samples", MOST_MEASURED)
    places = Rows(np.array([[0, len(train)]])).spaced(MOST_MEASURED)
    blocks = [places[start : start + READ_ROWS] for start in range(0, len(places), READ_ROWS)]
    with closing(prefetch(train.inputs, blocks, threads if threads > 1 else 0)) as results:
        for block, inputs in zip(blocks, results, strict=True):
            if (inputs.dtype, inputs.shape[1:]) != (first.dtype, first.shape[1:]):
                raise DataError(
                    f"train samples {block[0]} to {block[-1] + 1} are {inputs.dtype} {inputs.shape[1:]}, the first "
                    f"sample is {first.dtype} {first.shape[1:]}; all inputs must have one type and shape"
                )
            tally.moments.add(inputs)
            if train.source.kind == "numbers":
                tally.target_moments.add(train.targets(block))


def _without_paths(data: config.Data) -> dict[str, Any]:
    """Return the settings of the data set without its paths: equal content at another place is equal data."""
    params: dict[str, Any] = config.identity(data)["params"]
    paths = {tuple(name.split(".")) for name in plugins.named_files("data", data.name, data.params)}

    def without(value: Any, place: tuple[str, ...] = ()) -> Any:
        if isinstance(value, dict):
            return {key: without(item, (*place, key)) for key, item in value.items() if (*place, key) not in paths}
        return value

    kept: dict[str, Any] = without(params)
    return kept


def _store_name(made_by: Mapping[str, Any], seen: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    return config.digest({**made_by, **seen, "index": _index_digest(arrays)}, "everstep-store")


def _split_digest(seen: Mapping[str, Any], split: SplitRows) -> str:
    rows = {"origin": split.origin, "rows": content_digest(split.rows.runs), "probe": split.probe()}
    return blake2b(compact_json({**seen, **rows}), kind="everstep.split").hexdigest()


def _index_digest(arrays: Mapping[str, np.ndarray]) -> str:
    names: Sequence[str] = sorted(arrays)
    return blake2b(compact_json([names, content_digest(*(arrays[name] for name in names))])).hexdigest()
