"""Values of Arrow columns: images, numbers and targets."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workflow_lib.data import merged_in_float32
from workflow_lib.datasets._arrow_files import Batch, Table, Where, pyarrow
from workflow_lib.datasets._images import pixels
from workflow_lib.errors import DataError

log = logging.getLogger(__name__)


def read_images(batch: Batch, places: Sequence[int], where: Where, params: Any) -> np.ndarray:
    """Return the images in these rows of the batch, uint8 [rows, channels, height, width]."""
    column = batch.column(params.image)
    found = []
    for place in places:
        value = column[place].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value  # Hugging Face stores bytes beside a path
        if not isinstance(content, bytes):
            what = "the path of a file" if isinstance(value, dict) else type(value).__name__
            raise DataError(f"{where(place)}: `{params.image}` has {what}; allowed: the bytes of images")
        found.append(np.moveaxis(pixels(content, f"{where(place)}: `{params.image}`", params, params.shape), 2, 0))
    return np.stack(found)


def read_numbers(batch: Batch, places: Sequence[int], names: Sequence[str]) -> np.ndarray:
    """Return the numbers in these rows of the batch, float32 [rows, columns]."""
    columns = []
    for name in names:
        column = batch.column(name)
        check_numbers(name, column.type)
        columns.append(np.asarray(column.take(pyarrow().array(places))).astype(np.float32))
    return np.column_stack(columns)


def targets_of(table: Table, name: str) -> Any:
    """Return the values of a column: an array of numbers, or a list of texts."""
    types, parts = pyarrow().types, [batch.column(name) for batch, _ in table.batches()]
    if parts and not types.is_string(parts[0].type) and not types.is_large_string(parts[0].type):
        return np.concatenate([part.to_numpy(zero_copy_only=False) for part in parts])
    return [value for part in parts for value in part.to_pylist()]


def check_target(name: str, kind: Any, task: str) -> None:
    """Raise DataError unless a column has numbers, or names for classes."""
    types = pyarrow().types
    is_text = types.is_string(kind) or types.is_large_string(kind)
    if not (is_number(kind) or (is_text and task == "classification")):
        allowed = "names, whole numbers or booleans" if task == "classification" else "numbers"
        raise DataError(f"`{name}` is {kind}; allowed for a {task}: {allowed} (data.params.target)")


def warn_of_merged(table: Table, names: Sequence[str]) -> None:
    """Log a warning for a column whose numbers differ too little for float32."""
    left = set(names)
    for batch, where in table.batches():
        for name in sorted(left):
            merged = merged_in_float32(batch.column(name).to_numpy(zero_copy_only=False), tolerance=0.05)
            if merged is not None:
                left.remove(name)
                log.warning(
                    "%s: %r and %r in `%s` are equal in float32, in which models compute; subtract a constant from the "
                    "column, or use a larger unit",
                    where(0), *merged, name,
                )  # fmt: skip


def check_images(name: str, kind: Any) -> None:
    """Raise DataError unless a column has bytes, or a struct with `bytes` as Hugging Face writes it."""
    types = pyarrow().types
    has_bytes = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not (types.is_binary(kind) or types.is_large_binary(kind) or has_bytes):
        raise DataError(f"`{name}` is {kind}; allowed: the bytes of images (data.params.image)")


def check_numbers(name: str, kind: Any) -> None:
    """Raise DataError unless a column has numbers."""
    if not is_number(kind):
        raise DataError(f"`{name}` is {kind}; allowed: numbers (data.params.numbers)")


def is_number(kind: Any) -> bool:
    """Return True for a type of numbers or booleans."""
    types = pyarrow().types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def class_names(metadata: Mapping[bytes, bytes], name: str) -> tuple[str, ...]:
    """Return the names of a `ClassLabel` of Hugging Face, which are in the metadata of a schema; else none."""
    try:
        feature = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"][name]
        return tuple(map(str, feature["names"]))
    except (ValueError, KeyError, TypeError):
        return ()
