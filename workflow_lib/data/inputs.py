"""Samples to predict for: `open_inputs` of a data set reads a user's file into the inputs that training had stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from workflow_lib.data.manifest import Manifest
from workflow_lib.errors import DataError

# The columns that name the samples, and their inputs.
Named: TypeAlias = "tuple[Mapping[str, Sequence[Any] | np.ndarray], np.ndarray]"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Samples without targets, read a few at a time: `open_inputs` of a data set returns it.

    Attributes:
        read: `read(size)` yields all samples in order, about `size` of them at a time. Each element has the columns
            that name the samples, such as `row` or `file`, and their inputs as the data set's `Source.read` returns
            them: uint8 or float32 [rows, channels, ...]; language: tokens [rows, at most context + 1]
        samples: number of samples, for the progress bar; None if it is not known before all are read
        close: closes what `read` keeps open
    """

    read: Callable[[int], Iterator[Named]]
    samples: int | None = None
    close: Callable[[], None] = lambda: None


def open_array(path: Path, manifest: Manifest) -> Inputs:
    """Return the samples of a .npy file, which has inputs as they were stored; for data sets without `open_inputs`."""
    if path.suffix.lower() != ".npy" or not path.is_file():
        raise DataError(
            f"{path}: the data set `{manifest.data['name']}` has no `open_inputs`, so samples are read from a .npy "
            f"file: {manifest.dtype} of shape (n, {', '.join(map(str, manifest.input_shape))}), as its `read` returns"
        )
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file of numbers ({error})") from error

    def read(size: int) -> Iterator[Named]:
        for start in range(0, len(array), size):
            part = np.ascontiguousarray(array[start : start + size])
            yield {"row": np.arange(start, start + len(part))}, part

    return Inputs(read=read, samples=len(array) if array.ndim else 0)


def checked(inputs: Inputs, size: int, path: Path, manifest: Manifest) -> Iterator[Named]:
    """Yield the samples in batches of at most `size`. Raises DataError for inputs that the model was not trained on."""
    total = 0
    for names, given in inputs.read(size):
        _check(names, given, path, manifest)
        total += len(given)
        for start in range(0, len(given), size):
            rows = slice(start, start + size)
            yield {name: values[rows] for name, values in names.items()}, given[rows]
    if not total:
        raise DataError(f"{path}: has no samples")


def name_of(names: Mapping[str, Sequence[Any] | np.ndarray], row: int) -> str:
    """Return the name of a sample for messages: `row 5`."""
    return ", ".join(f"{name} {values[row]}" for name, values in names.items())


def _check(names: Mapping[str, Any], given: Any, path: Path, manifest: Manifest) -> None:
    shape, is_sequence = manifest.input_shape, manifest.has_tokens
    where = f"{path}: {name_of(names, 0)}" if len(given) else str(path)
    if not isinstance(given, np.ndarray) or given.dtype.name != manifest.dtype:
        kind = given.dtype.name if isinstance(given, np.ndarray) else type(given).__name__
        raise DataError(f"{where}: is {kind}; the model was trained on {manifest.dtype}")
    if is_sequence and (given.ndim != 2 or not 2 <= given.shape[1] <= shape[0]):
        raise DataError(f"{where}: is of shape {given.shape[1:]}; allowed: 2 to {shape[0]} tokens")
    if not is_sequence and given.shape[1:] != shape:
        raise DataError(f"{where}: is of shape {given.shape[1:]}; the model was trained on {shape}")
    bad = np.isinf(given) if manifest.features else ~np.isfinite(given)
    if bad.any():
        row = int(bad.reshape(len(bad), -1).any(axis=1).argmax())
        what = "an infinite value" if manifest.features else "NaN or infinite values"
        raise DataError(f"{path}: {name_of(names, row)}: has {what}")
