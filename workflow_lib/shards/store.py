"""A shard on disk: inputs, targets, and the digest of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workflow_lib.files import write_atomic
from workflow_lib.shards.source import content_digest


@dataclass(frozen=True)
class Stored:
    """The content of a shard, and its digest."""

    inputs: np.ndarray
    targets: np.ndarray
    digest: str

    @classmethod
    def of(cls, inputs: np.ndarray, targets: np.ndarray) -> Stored:
        """The content with its digest."""
        return cls(inputs, targets, content_digest(inputs, targets))


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


def write_shard(path: Path, stored: Stored) -> None:
    """The file holds the shard, whole."""
    from safetensors.numpy import save

    tensors = {"inputs": stored.inputs, "targets": stored.targets}
    write_atomic(path, save(tensors, metadata={"digest": stored.digest}))
