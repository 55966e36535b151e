"""The final checkpoint of a finished run."""

from __future__ import annotations

import logging
from pathlib import Path

from workflow_lib import checkpoint
from workflow_lib.checkpoint import Checkpoint
from workflow_lib.errors import CheckpointError
from workflow_lib.store import layout
from workflow_lib.store.code_record import read_acceptance

logger = logging.getLogger(__name__)


def find_result(workspace: Path) -> Checkpoint | None:
    """Return the final checkpoint of the workspace, or else of the workspace that a user accepted for it."""
    final = find_final_checkpoint(workspace)
    record = None if final else read_acceptance(workspace)
    if record is None:
        return final
    logger.warning("the result of other code is used, as accepted by %s: %s", record["by"], record["workspace"])
    return find_final_checkpoint(workspace.with_name(record["workspace"]))


def find_final_checkpoint(workspace: Path) -> Checkpoint | None:
    """Return the verified final checkpoint of a run; None if the run is not finished or the checkpoint is damaged."""
    for path in reversed(checkpoint.published(layout.checkpoints_dir(workspace))):
        try:
            found = checkpoint.read_manifest(path)
            fingerprint = found.manifest["fingerprint"]
            parts = [fingerprint["data"][:12], *([fingerprint["code"][:12]] if "code" in fingerprint else [])]
            if (fingerprint["run"], "-".join(parts)) != workspace.parts[-2:]:
                raise CheckpointError(f"it belongs to run {fingerprint['run'][:12]}")
            if not is_finished(found):
                return None
            checkpoint.verify(found)
            return found
        except CheckpointError as error:
            logger.warning("checkpoint %s cannot be used: %s", path.name, error)
    return None


def is_finished(newest: Checkpoint | None) -> bool:
    """Return True if the newest checkpoint of a run is its final one."""
    return newest is not None and newest.about["cursor"]["phase"] == "finish"
