"""Small data that is read in place, in each format, and experiments that train on it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = ("arrow", "parquet", "tar")
ROWS = 1000


def experiment(folder: Path, name: str, ranks: int = 1, *, in_memory: bool = False) -> dict[str, Any]:
    """Return the changes for an experiment on data of this format; the data is written into the folder if missing."""
    path = folder / f"rows.{name}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        {"arrow": _write_texts, "parquet": _write_numbers, "tar": _write_images}[name](path)
    params, model = {
        "arrow": (
            {"text": "t", "context": 16, "bpe": {"vocabulary": 270}},
            {"name": "transformer", "params": {"width": 16, "layers": 1, "heads": 2}},
        ),
        "parquet": ({"numbers": ["a", "b"], "target": "y"}, {"name": "tabular", "params": {"hidden": [8]}}),
        "tar": ({"size": 8, "channels": "grey"}, {"name": "cnn", "params": {"channels": [4, 8]}}),
    }[name]
    return {
        "data": {
            "name": "tar" if name == "tar" else "arrow",
            "params": {"path": str(path), **params},
            "in_memory": in_memory,
        },
        "model": model,
        "training": {"epochs": 3, "batch_size": 66},
        "runtime": {"nproc": ranks, "workers": 0 if in_memory else 2},
    }


def _write_texts(path: Path) -> None:
    import pyarrow
    from pyarrow import ipc

    random = np.random.default_rng(0)
    words = ("one", "two", "three", "house", "tree")
    table = pyarrow.table({"t": [" ".join(random.choice(words, 6)) for _ in range(ROWS)]})
    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=90)


def _write_numbers(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    numbers = np.random.default_rng(0).normal(size=(ROWS, 2))
    columns = {"a": numbers[:, 0], "b": numbers[:, 1], "y": (numbers.sum(axis=1) > 0).astype(np.int64)}
    parquet.write_table(pyarrow.table(columns), path, row_group_size=90)


def _write_images(path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 200, (ROWS, 8, 8))
    pixels = (noise + 25 * (np.arange(ROWS) % 3)[:, None, None]).astype(np.uint8)  # brighter by class: slowly learned
    with tarfile.open(path, "w") as tar:
        for number, image in enumerate(pixels):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            for end, content in (("png", buffer.getvalue()), ("cls", b"%d" % (number % 3))):
                member = tarfile.TarInfo(f"{number:04}.{end}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
