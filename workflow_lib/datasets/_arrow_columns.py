"""Values of Arrow columns: images, numbers and targets."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    types = pyarrow().types
    columns = []
    for name in names:
        column = batch.column(name)
        if not (types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type)):
            raise DataError(f"`{name}` is {column.type}; allowed: numbers (data.params.numbers)")
        columns.append(np.asarray(column.take(pyarrow().array(places))).astype(np.float32))
    return np.column_stack(columns)


def targets_of(table: Table, name: str) -> Any:
    """Return the values of a column: an array of numbers, or a list of texts."""
    types, parts = pyarrow().types, [batch.column(name) for batch in table.batches()]
    if parts and all(types.is_integer(part.type) or types.is_floating(part.type) for part in parts):
        return np.concatenate([np.asarray(part) for part in parts])
    return [value for part in parts for value in part.to_pylist()]


def class_names(table: Table, name: str) -> tuple[str, ...]:
    """Return the names of a `ClassLabel` of Hugging Face, which are in the metadata of the schema; else none."""
    metadata = table.metadata().get(b"huggingface")
    try:
        feature = json.loads(metadata or b"{}")["info"]["features"][name]
        return tuple(map(str, feature["names"]))
    except (ValueError, KeyError, TypeError):
        return ()
