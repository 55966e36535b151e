"""Settings for a folder of images and a table with a row for each of them."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np

from workflow_lib.datasets._values import names_of
from workflow_lib.errors import DataError
from workflow_lib.start.guess import Guess, of_images
from workflow_lib.start.tables import Rows, is_quantity, look_at_target, read, target_of
from workflow_lib.text import count

NEARLY_ALL = 0.9  # of the rows name an image
LIKE_FILE = re.compile("file|image|img|path|photo|picture|name|id$")


def of_image_tables(images: Sequence[Path], tables: Sequence[Path]) -> Guess | None:
    """Return settings for images of one folder and the table that names most of them; None if no table does."""
    names = {name for image in images for name in (image.name, image.stem)}
    found: list[tuple[int, Path, Rows, str]] = []
    for path in tables:
        try:
            rows = read(path)
        except DataError:  # such as a table of other things
            continue
        named = {c: [value in names for value in _written(rows, c)] for c in rows.frame.columns}
        columns = [name for name, are in named.items() if any(are) and sum(are) >= NEARLY_ALL * len(are)]
        if columns and len(rows.frame.columns) > 1:  # a column of other numbers may look like names, too
            column = max(columns, key=lambda name: (LIKE_FILE.search(name.lower()) is not None, sum(named[name])))
            found.append((sum(named[column]), path, rows, column))
    if not found:
        return None
    _, path, rows, column = max(found, key=lambda match: match[0])
    made = _of(images, path, rows, column)
    if others := [table for table in tables if table != path]:
        made.odd.append(f"{count(len(others), 'other table')}, such as {others[0]}: not used")
    return made


def _of(images: Sequence[Path], path: Path, rows: Rows, column: str) -> Guess:
    frame = rows.frame.drop(columns=column)
    made = of_images(path, {str(image): image for image in images})
    folder = images[0].parent
    params = {"path": str(folder), "table": str(path), "file": column}
    labels = [name for name in frame.columns if set(frame[name].unique()) == {0, 1}]
    if len(labels) > 1:
        target: str | list[str] = labels
        task = "multilabel"
    else:
        target = target_of(frame)
        task = "regression" if is_quantity(frame[target]) else "classification"
    params |= {key: value for key, value in made.data["params"].items() if key != "path"}
    made.data = {"name": "image_table", "params": params | {"target": target, "task": task}}
    made.found = [f"{count(len(images), 'image')}, {count(len(frame), 'row')} in {path}", f"target {target!r}: {task}"]
    if isinstance(target, str):
        look_at_target(frame, target, task == "regression", made)
    else:
        made.found += [f"{name}: {int(frame[name].sum()):,} of {len(frame):,}" for name in labels]
    rows.write_notation(made)
    rows.write_file(made)
    left_out = [name for name in frame.columns if name != target and name not in labels]
    made.odd += [f"columns that are not used: {', '.join(left_out)}"] if left_out else []
    made.odd += _differences(images, {*_written(rows, column)})
    made.fit_batches(len(frame))
    return made


def _written(rows: Rows, column: str) -> list[str]:
    """Return the values of a column as they are written, such as `007`, which is not the number 7 here."""
    parts = (piece.values[column] for piece in rows.pieces)
    texts = (names_of(part, rows.notation) if isinstance(part, np.ndarray) else part for part in parts)
    return [value for part in texts for value in part if value]


def _differences(images: Sequence[Path], named: Set[str]) -> list[str]:
    """Return lines on images without a row, and on rows without an image."""
    without = [image for image in images if not {image.name, image.stem} & named]
    lines = [f"{count(len(without), 'image')} without a row, such as {without[0]}: left out"] if without else []
    known = {name for image in images for name in (image.name, image.stem)}
    if missing := sorted(named - known):
        lines.append(f"to correct: {count(len(missing), 'row')} without an image, such as {missing[0]}")
    return lines
