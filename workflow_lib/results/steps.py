"""The log of steps: loss and learning rate every few steps, in a checkpoint and as `steps.csv`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import checkpoint
from workflow_lib.files import write_atomic
from workflow_lib.results import layout

if TYPE_CHECKING:
    import torch

    from workflow_lib.checkpoint import Checkpoint

COLUMNS = ("step", "lr", "train_loss")
GROUP, TENSOR = "log", "log.rows"  # in a checkpoint; the readers of sharded files expect a dot


def rows(log: torch.Tensor) -> list[dict[str, float]]:
    """Return the rows of a float64 tensor [rows, 3] by the names of their columns."""
    return [{**dict(zip(COLUMNS, row, strict=True)), "step": int(row[0])} for row in log.tolist()]


def read(saved: Checkpoint) -> list[dict[str, float]]:
    """Return the rows in a checkpoint; none if steps are not logged."""
    if f"{GROUP}.safetensors" not in saved.manifest["files"]:
        return []
    return rows(checkpoint.read_tensors(saved, GROUP)[TENSOR])


def write(log: Sequence[Mapping[str, float]], train: Path) -> None:
    """Write the rows beside a training's statement; without rows, remove the file of an earlier training."""
    path = train.with_name(layout.STEPS)
    if not log:
        path.unlink(missing_ok=True)
        return
    lines = [",".join(COLUMNS), *(",".join(repr(row[name]) for name in COLUMNS) for row in log)]
    write_atomic(path, "\n".join(lines) + "\n")
