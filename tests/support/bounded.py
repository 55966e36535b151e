"""Prepare and train on data in a process whose memory is limited to a part of the size of the data.

The limit (RLIMIT_DATA) counts private writable memory. Files that are mapped for reading do not count: the kernel can
drop their pages at any time.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.prepared import trained
from workflow_lib import data as shards
from workflow_lib.data import Source, preparation
from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.plugins import Section

ROOM = 64 << 20
SAMPLES = 40_000
SHAPE = (1, 64, 64)
PATTERN = np.arange(SHAPE[1] * SHAPE[2], dtype=np.uint8).reshape(SHAPE)


class Params(Section):
    """The number of samples."""

    samples: int


def open_source(params: Params, root: Path) -> Source:
    """Images of 4 kB, generated when they are read."""
    return Source(
        targets={"train": np.arange(params.samples) % 2},
        read=lambda split, rows: PATTERN + (rows % 7).astype(np.uint8)[:, None, None, None],
        classes=("even", "odd"),
        scale=255.0,
        is_thread_safe=True,
    )


def memory() -> int:
    """Return the bytes of private writable memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmData")).split()[1]) << 10


def prepare(folder: Path, samples: int, **settings: Any) -> shards.Manifest:
    data = {"name": __spec__.name, "params": {"samples": samples}} | settings
    return shards.prepare(data, folder, folder / "work", threads=2)


def refused(act: Callable[[], object]) -> bool:
    """Return True if the call fails for lack of memory."""
    try:
        act()
    except MemoryError:
        return True
    except RuntimeError as error:
        return "allocate memory" in str(error)
    return False


def main(folder: Path) -> None:
    training = {"epochs": 1, "batch_size": 64}
    small = prepare(folder / "small", 2048, shard_samples=512)  # allocate what only the first training allocates
    trained(small, folder / "small", SharedState(1), workspace="small", hidden=8, training=training, in_memory=False)
    resource.setrlimit(resource.RLIMIT_DATA, (memory() + ROOM,) * 2)
    size, preparation.SHARD_BYTES = preparation.SHARD_BYTES, 1 << 40
    in_one = refused(lambda: prepare(folder, SAMPLES, shard_samples=SAMPLES))
    preparation.SHARD_BYTES = size
    manifest = prepare(folder, SAMPLES, shard_samples=1024)
    trainer = trained(manifest, folder, SharedState(1), workspace="large", hidden=8, training=training, in_memory=False)
    held = refused(lambda: shards.load_split(manifest, "train", folder / "work", in_memory=True))
    steps = trainer.state.progress.cursor.step
    print(json.dumps({"room": ROOM, "steps": steps, "refused in one shard": in_one, "refused in memory": held}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
