"""A data set becomes checksummed shards and a manifest: equal content has an equal digest, however it was cut.

    work/data/<digest of settings and source files>/
        train-000000000000-000000004096.safetensors   inputs and targets as stored, with the digest of both
        manifest.json                                 written last; a rule's output is a copy of it

A crash costs the shard being written: what verifies is kept, what is missing or damaged is made again.
"""

from __future__ import annotations

import hashlib
import logging
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import ValidationError

from workflow_lib import config, plan, plugins
from workflow_lib.errors import ConfigError, DataError
from workflow_lib.files import write_atomic, write_json
from workflow_lib.plugins import Section

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
MEND = "run preprocess again (snakemake --forcerun preprocess): it makes what is missing or damaged, no more"
SHARD_BYTES = 1 << 27  # largest shard, whatever its number of samples: a few of them fit the memory of any job
BLOCK = 1 << 22  # values summed at once: bounds the memory of the statistics


# What a data set gives


@dataclass(frozen=True)
class SourceFile:
    """A file of the person's, as it was when it was digested."""

    path: Path
    digest: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        """The file with the BLAKE2b of its bytes."""
        before = path.stat()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, _blake2b).hexdigest()
        return cls(path, digest, before.st_size, before.st_mtime_ns)

    def is_unchanged(self) -> bool:
        """True while nobody has written to the file since."""
        try:
            now = self.path.stat()
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns) == (self.size, self.mtime_ns)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What `open_source` of a data set returns: the targets, and a way to read inputs a few at a time.

    targets   class numbers, int64 [n], of each split that the data set brings; `train` is one of them, and a
              missing `val` or `test` is taken from it, stratified, by `data.split_seed` and the fractions
    read      `read(split, rows)` gives the inputs of these rows, which ascend: uint8 or float32 [rows, channels, ...]
    classes   names of the classes, in the order of their numbers
    scale     stored inputs are divided by it: 255 makes bytes 0 to 1
    files     what the data came from; a changed file is new data
    content   digest of inputs that come from no file
    close     gives back what `read` holds open
    """

    targets: Mapping[str, np.ndarray]
    read: Callable[[str, np.ndarray], np.ndarray]
    classes: tuple[str, ...]
    scale: float = 1.0
    files: tuple[SourceFile, ...] = ()
    content: str = ""
    close: Callable[[], None] = lambda: None


def from_arrays(inputs: np.ndarray, targets: np.ndarray, *, classes: Sequence[str], scale: float = 1.0) -> Source:
    """A source whose data is in memory already, in one piece: the splits are made from it."""
    return Source(
        targets={"train": np.asarray(targets, dtype=np.int64)},
        read=lambda split, rows: inputs[rows],
        classes=tuple(classes),
        scale=scale,
        content=content_digest(inputs),
    )


# What a training sees


@dataclass(frozen=True)
class ModelSpec:
    """What a model must fit: the shape of one input, and how many classes it tells apart."""

    input_shape: tuple[int, ...]
    classes: int
    task: str = "classification"


class Shard(Section):
    """A file of consecutive samples of one split."""

    split: str
    start: int
    stop: int
    digest: str

    @property
    def name(self) -> str:
        """Its file name."""
        return f"{self.split}-{self.start:012d}-{self.stop:012d}.safetensors"


class SplitSummary(Section):
    """How many samples a split holds, in all and of each class, and the digest of its content."""

    samples: int
    per_class: tuple[int, ...]
    digest: str


class Manifest(Section):
    """All that is known of prepared data. A model's input is `(stored / scale - mean) / std`, by channel."""

    digest: str  # of what a training can see
    store: str  # folder in work/data
    data: dict[str, Any]  # the settings
    task: Literal["classification"] = "classification"
    input_shape: tuple[int, ...]
    dtype: str  # uint8 or float32
    classes: tuple[str, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]  # 1 for a channel that never varies
    splits: dict[str, SplitSummary]
    shards: tuple[Shard, ...]
    sources: dict[str, str]  # digest of each source file

    @property
    def spec(self) -> ModelSpec:
        """What a model for this data must fit."""
        return ModelSpec(self.input_shape, len(self.classes), self.task)

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """The manifest in a file; its digest is checked."""
        try:
            manifest = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise DataError(f"{path}: no manifest; {MEND}") from error
        except ValidationError as error:
            raise DataError(f"{path}: not a manifest of this version; {MEND}") from error
        if manifest.digest != manifest.content_digest():
            raise DataError(f"{path}: its digest is not that of what it says; {MEND}")
        return manifest

    def save(self, path: Path) -> None:
        """The file holds the manifest, whole."""
        write_json(path, self.model_dump(mode="json"))

    def content_digest(self) -> str:
        """The digest of what a training can see: no path, no shard, no name."""
        seen = self.model_dump(mode="json", include={"task", "input_shape", "dtype", "scale", "mean", "std"})
        splits = {name: [split.samples, split.digest] for name, split in self.splits.items()}
        return config.digest(seen | {"classes": len(self.classes), "splits": splits}, "everstep-data")


@dataclass(frozen=True)
class Split:
    """Samples ready for a model: normalised float32 [n, *input_shape], and class numbers int64 [n]."""

    inputs: Tensor
    targets: Tensor


def load_split(manifest: Manifest, split: str, work: Path, device: str = "cpu") -> Split:
    """A whole split in memory, each shard verified; a damaged shard is an error that says how to mend it."""
    import torch

    samples = manifest.splits[split].samples
    inputs = torch.empty((samples, *manifest.input_shape), dtype=torch.float32, device=device)
    targets = torch.empty(samples, dtype=torch.int64, device=device)
    for shard in (shard for shard in manifest.shards if shard.split == split):
        path = work / "data" / manifest.store / shard.name
        stored = read_shard(path)
        if stored is None or stored.digest != shard.digest:
            raise DataError(f"{path}: the shard is damaged or missing; {MEND}")
        part = slice(shard.start, shard.stop)
        inputs[part] = normalise(manifest, torch.from_numpy(stored.inputs).to(device))
        targets[part] = torch.from_numpy(stored.targets)
    return Split(inputs, targets)


def normalise(manifest: Manifest, inputs: Tensor) -> Tensor:
    """Stored inputs [n, *input_shape] as a model takes them; the same bits for any part of the data."""
    import torch

    shape = (-1, *[1] * (len(manifest.input_shape) - 1))
    mean = torch.tensor(manifest.mean, dtype=torch.float32, device=inputs.device).view(shape)
    std = torch.tensor(manifest.std, dtype=torch.float32, device=inputs.device).view(shape)
    return inputs.to(torch.float32, copy=True).div_(manifest.scale).sub_(mean).div_(std)


# Preparing


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
        return _stored(data, source, Path(str(plugin.__file__)), root, work)


def _stored(data: config.Data, source: Source, plugin: Path, root: Path, work: Path) -> Manifest:
    parts = assign(source, data)
    first = _read(source, parts["train"], 0, 1)
    samples = min(data.shard_samples, max(1, SHARD_BYTES // first.nbytes))
    folder = work / "data" / _store(data, source, plugin)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        tally, made = Tally(first), []
        for shard in _shown(_cuts(parts, samples), data.name):
            path, part = folder / shard.name, parts[shard.split]
            stored = read_shard(path)
            if stored is None or not _fits(stored, first, part.targets[shard.start : shard.stop]):
                stored = _make(path, source, part, shard, first)
                made.append(path)
                log.info("%s: %s samples %d to %d written", data.name, shard.split, shard.start, shard.stop)
            tally.add(shard, stored)
        _refuse_changed(source, made)
        manifest = tally.manifest(folder.name, data, root, source)
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

    def __init__(self, first: np.ndarray) -> None:
        self.first = first
        self.shards: list[Shard] = []
        self.counts = {split: Counter[int]() for split in SPLITS}
        self.hashers = {split: (_blake2b(), _blake2b()) for split in SPLITS}
        self.moments = Moments(first.shape[1])

    def add(self, shard: Shard, stored: Stored) -> None:
        """The next shard of its split is counted in."""
        self.shards.append(shard.model_copy(update={"digest": stored.digest}))
        self.counts[shard.split].update(stored.targets.tolist())
        for hasher, array in zip(self.hashers[shard.split], (stored.inputs, stored.targets), strict=True):
            hasher.update(_bytes(array))
        if shard.split == "train":
            self.moments.add(stored.inputs)

    def manifest(self, store: str, data: config.Data, root: Path, source: Source) -> Manifest:
        """The manifest of all the shards."""
        mean, std = self.moments.mean_and_std(source.scale)
        manifest = Manifest(
            digest="",
            store=store,
            data=data.model_dump(mode="json"),
            input_shape=self.first.shape[1:],
            dtype=self.first.dtype.name,
            classes=source.classes,
            scale=source.scale,
            mean=mean,
            std=std,
            splits={split: self._summary(split, len(source.classes)) for split in SPLITS},
            shards=tuple(self.shards),
            sources={_relative(file.path, root): file.digest for file in source.files},
        )
        return manifest.model_copy(update={"digest": manifest.content_digest()})

    def _summary(self, split: str, classes: int) -> SplitSummary:
        counts = self.counts[split]
        whole = _blake2b(b"".join(hasher.digest() for hasher in self.hashers[split]))
        per_class = tuple(counts[number] for number in range(classes))
        return SplitSummary(samples=counts.total(), per_class=per_class, digest=whole.hexdigest())


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


# Splits


@dataclass(frozen=True)
class Part:
    """A split as it will be stored: which rows of which of the source's splits, and their targets."""

    origin: str
    rows: np.ndarray
    targets: np.ndarray


def assign(source: Source, data: config.Data) -> dict[str, Part]:
    """The rows of train, val and test; a split without one of the classes is refused."""
    fractions = {"val": data.validation_fraction, "test": data.test_fraction}
    missing = [name for name in fractions if name not in source.targets]
    rows = {name: np.arange(len(targets)) for name, targets in source.targets.items()}
    if missing:
        made = stratified_split(source.targets["train"], [fractions[name] for name in missing], data.split_seed)
        rows.update(zip(("train", *missing), made, strict=True))
    parts = {}
    for name in SPLITS:
        origin = "train" if name in missing else name
        parts[name] = Part(origin, rows[name], source.targets[origin][rows[name]])
        _refuse_empty(name, parts[name], source.classes, made=bool(missing) and origin == "train")
    return parts


def _refuse_empty(split: str, part: Part, classes: tuple[str, ...], *, made: bool) -> None:
    counts = np.bincount(part.targets, minlength=len(classes))
    if counts.all():
        return
    advice = "change the fractions in `data`" if made else "leave the split out, to have it made from train"
    each = [f"{name}: {count}" for name, count in zip(classes, counts, strict=True)]
    listing = ", ".join(each[:20] + ["..."] * (len(each) > 20))
    empty = ", ".join(f"`{classes[number]}`" for number in np.flatnonzero(counts == 0)[:20])
    raise DataError(f"the {split} split has no sample of class {empty} ({listing}); give more samples, or {advice}")


def stratified_split(targets: np.ndarray, fractions: Sequence[float], seed: int) -> tuple[np.ndarray, ...]:
    """Rows of what is left, then of each fraction, ascending: each row once, each class in proportion.

    Proportion is kept to within one row. The random numbers are Philox's raw stream, equal in all numpy versions.
    """
    if sum(fractions) >= 1:
        raise ConfigError(
            f"data.validation_fraction and data.test_fraction are {sum(fractions):g} together; "
            "less than 1 leaves data to train"
        )
    keys = np.random.Philox(key=seed).random_raw(len(targets))
    by_class = np.split(np.lexsort((keys, targets)), np.cumsum(np.bincount(targets))[:-1])
    sizes = [_in_proportion([len(rows) for rows in by_class], fraction) for fraction in fractions]
    pieces = [np.split(rows, np.cumsum(size)) for rows, size in zip(by_class, zip(*sizes, strict=True), strict=True)]
    *taken, left = (np.sort(np.concatenate(piece)) for piece in zip(*pieces, strict=True))
    return (left, *taken)


def _in_proportion(counts: Sequence[int], fraction: float) -> list[int]:
    """A whole number for each count, together the fraction of their sum: the largest remainders go up."""
    exact = [count * fraction for count in counts]
    sizes = [math.floor(quota) for quota in exact]
    by_remainder = sorted(range(len(counts)), key=lambda i: sizes[i] - exact[i])
    for i in by_remainder[: round(sum(counts) * fraction) - sum(sizes)]:
        sizes[i] += 1
    return sizes


# Shards on disk


@dataclass(frozen=True)
class Stored:
    """The content of a shard, and its digest."""

    inputs: np.ndarray
    targets: np.ndarray
    digest: str


def read_shard(path: Path) -> Stored | None:
    """What a shard holds; None when it is missing or is not what was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            inputs, targets = file.get_tensor("inputs"), file.get_tensor("targets")
            digest = (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None
    return Stored(inputs, targets, digest) if digest == content_digest(inputs, targets) else None


def _make(path: Path, source: Source, part: Part, shard: Shard, first: np.ndarray) -> Stored:
    """A shard, written whole."""
    from safetensors.numpy import save

    inputs, targets = _read(source, part, shard.start, shard.stop), part.targets[shard.start : shard.stop]
    stored = Stored(inputs, targets, content_digest(inputs, targets))
    if not _fits(stored, first, targets):
        raise DataError(
            f"{shard.split} samples {shard.start} to {shard.stop} are {inputs.dtype} {inputs.shape[1:]}, "
            f"the first of train is {first.dtype} {first.shape[1:]}; all inputs have one shape"
        )
    write_atomic(path, save({"inputs": inputs, "targets": targets}, metadata={"digest": stored.digest}))
    return stored


def _read(source: Source, part: Part, start: int, stop: int) -> np.ndarray:
    """Inputs of the part's samples start to stop; what cannot be stored is refused."""
    rows = part.rows[start:stop]
    inputs = np.asarray(source.read(part.origin, rows))
    if inputs.dtype not in (np.uint8, np.float32) or inputs.ndim < 2 or len(inputs) != len(rows):
        raise DataError(
            f"read(`{part.origin}`, {len(rows)} rows) gave {inputs.dtype} of shape {inputs.shape}; "
            f"inputs are uint8 or float32 of shape ({len(rows)}, channels, ...)"
        )
    if inputs.dtype == np.float32 and not np.isfinite(inputs).all():
        bad = rows[first_true(~np.isfinite(inputs))]
        raise DataError(f"the input in row {bad} of `{part.origin}` has NaN or infinite values")
    return np.ascontiguousarray(inputs)


def first_true(where: np.ndarray) -> int:
    """The first row with a true value in it."""
    return int(where.reshape(len(where), -1).any(axis=1).argmax())


def _fits(stored: Stored, first: np.ndarray, targets: np.ndarray) -> bool:
    is_alike = (stored.inputs.dtype, stored.inputs.shape[1:]) == (first.dtype, first.shape[1:])
    return is_alike and len(stored.inputs) == len(targets) and np.array_equal(stored.targets, targets)


def _refuse_changed(source: Source, made: Sequence[Path]) -> None:
    changed = [file.path for file in source.files if not file.is_unchanged()]
    if changed:
        for path in made:
            path.unlink()
        raise DataError(f"{changed[0]}: changed while it was being read; run again when it is complete")


def _blake2b(data: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=16)


def content_digest(*arrays: np.ndarray) -> str:
    """BLAKE2b of shapes, types and values."""
    hasher = _blake2b()
    for array in arrays:
        hasher.update(f"{array.dtype.str}{array.shape}".encode())
        hasher.update(_bytes(np.ascontiguousarray(array)))
    return hasher.hexdigest()


def _bytes(array: np.ndarray) -> memoryview:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


# Statistics


class Moments:
    """Mean and deviation by channel, exact until the last rounding: any order of any parts gives the same bits."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sums = [Fraction(0)] * channels
        self.squares = [Fraction(0)] * channels

    def add(self, inputs: np.ndarray) -> None:
        """Inputs [n, channels, ...] are counted in."""
        step = max(1, BLOCK // inputs[0].size)
        for block in (inputs[start : start + step] for start in range(0, len(inputs), step)):
            for channel in range(len(self.sums)):
                total, squares = _sums(block[:, channel].ravel())
                self.sums[channel] += total
                self.squares[channel] += squares
            self.count += block[:, 0].size

    def mean_and_std(self, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """By channel, of the values divided by the scale; the deviation of a constant is given as 1."""
        unit = Fraction(scale)
        means = [total / self.count for total in self.sums]
        variances = [square / self.count - mean**2 for square, mean in zip(self.squares, means, strict=True)]
        return tuple(float(m / unit) for m in means), tuple(math.sqrt(v / unit**2) or 1.0 for v in variances)


def _sums(values: np.ndarray) -> tuple[Fraction, Fraction]:
    """The exact sum of the values, uint8 or float32, and of their squares."""
    if values.dtype == np.uint8:
        counts = np.bincount(values, minlength=256).tolist()
        return Fraction(sum(v * n for v, n in enumerate(counts))), Fraction(
            sum(v * v * n for v, n in enumerate(counts))
        )
    doubles = values.astype(np.float64)  # which hold the square of a float32, too
    return exact_sum(doubles), exact_sum(np.square(doubles))


def exact_sum(values: np.ndarray) -> Fraction:
    """The sum of up to 2^26 finite float64 values without rounding: by exponent, mantissas add up as integers."""
    mantissas, exponents = np.frexp(values)
    integers = np.ldexp(mantissas, 53).astype(np.int64)
    lowest = int(exponents.min())
    # Halves of 27 bits, so that a float64 holds each of bincount's sums exactly.
    halves = (integers >> 27, integers & ((1 << 27) - 1))
    upper, lower = (np.bincount(exponents - lowest, weights=half) for half in halves)
    total = sum(((int(u) << 27) + int(w)) << shift for shift, (u, w) in enumerate(zip(upper, lower, strict=True)))
    return Fraction(total) * Fraction(2) ** (lowest - 53)
