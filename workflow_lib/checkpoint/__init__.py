"""Checkpoints: published whole, loaded verified."""

from workflow_lib.checkpoint.manifest import (
    MANIFEST,
    NAME,
    STATE,
    Checkpoint,
    digest,
    published,
    read_manifest,
    read_newest,
    read_state,
    read_tensors,
    verify,
    whole,
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
    "read_manifest",
    "read_newest",
    "read_state",
    "read_tensors",
    "verify",
    "whole",
]
