"""Checkpoints: published whole, loaded verified. Knows no trainer."""

from workflow_lib.checkpoint.manifest import (
    MANIFEST,
    NAME,
    STATE,
    Checkpoint,
    digest,
    published,
    read_group_file,
    read_manifest,
    read_newest,
    read_state,
    read_tensors,
    verify,
)
from workflow_lib.checkpoint.snapshot import Snapshot
from workflow_lib.checkpoint.store import CheckpointStore

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "MANIFEST",
    "NAME",
    "STATE",
    "Snapshot",
    "digest",
    "published",
    "read_group_file",
    "read_manifest",
    "read_newest",
    "read_state",
    "read_tensors",
    "verify",
]
