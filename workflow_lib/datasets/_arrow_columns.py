"""Values of Arrow columns: images, numbers and targets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workflow_lib.datasets._arrow_files import Batch, Table, pyarrow
from workflow_lib.datasets._images import pixels
from workflow_lib.errors import DataError


def read_images(batch: Batch, places: Sequence[int], params: Any) -> np.ndarray:
    """Return the images in these rows of the batch, uint8 [rows, channels, height, width]."""
    column = batch.column(params.image)
    found = []
    for place in places:
        value = column[place].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value  # Hugging Face stores bytes beside a path
        if not isinstance(content, bytes):
            what = "the path of a file" if isinstance(value, dict) else type(value).__name__
            raise DataError(f"`{params.image}` has {what}; allowed: the bytes of PNG or JPEG images")
        found.append(np.moveaxis(pixels(content, f"`{params.image}`", params, params.shape), 2, 0))
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
    types, parts = pyarrow().types, [batch.column(name) for batch in table.batches()]
    if parts and all(types.is_integer(part.type) or types.is_floating(part.type) for part in parts):
        return np.concatenate([np.asarray(part) for part in parts])
    return [value for part in parts for value in part.to_pylist()]


def check_images(name: str, kind: Any) -> None:
    """Raise DataError unless a column has bytes, or a struct with `bytes` as Hugging Face writes it."""
    types = pyarrow().types
    has_bytes = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not (types.is_binary(kind) or types.is_large_binary(kind) or has_bytes):
        raise DataError(f"`{name}` is {kind}; allowed: the bytes of PNG or JPEG images (data.params.image)")


def check_numbers(name: str, kind: Any) -> None:
    """Raise DataError unless a column has numbers."""
    types = pyarrow().types
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        raise DataError(f"`{name}` is {kind}; allowed: numbers (data.params.numbers)")


def class_names(metadata: Mapping[bytes, bytes], name: str) -> tuple[str, ...]:
    """Return the names of a `ClassLabel` of Hugging Face, which are in the metadata of a schema; else none."""
    try:
        feature = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"][name]
        return tuple(map(str, feature["names"]))
    except (ValueError, KeyError, TypeError):
        return ()
