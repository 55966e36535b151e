"""Predicted masks: a PNG file for each sample, in a folder beside the table."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from workflow_lib.errors import UserError
from workflow_lib.files import write_atomic


def folder_of(output: Path) -> Path:
    """Return the folder of the masks of a table: `predictions_masks` for `predictions.csv`."""
    return output.with_name(f"{output.stem}_masks")


def write_masks(folder: Path, names: Mapping[str, Sequence[Any] | np.ndarray], masks: np.ndarray) -> list[str]:
    """Write masks, uint8 [n, height, width], as PNG files of class numbers; return their paths in the folder.

    A file is named by the columns that name its sample, with `.png` behind them. Raises UserError for a name that
    leads out of the folder.
    """
    from PIL import Image

    written = []
    for number, parts in enumerate(zip(*names.values(), strict=True)):
        name = "-".join(map(str, parts)) + ".png"
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"{name}: the name of a sample leads out of {folder}; rename it")
        file = io.BytesIO()
        Image.fromarray(masks[number]).save(file, "PNG")
        write_atomic(folder / name, file.getvalue(), durable=False)
        written.append(name)
    return written
