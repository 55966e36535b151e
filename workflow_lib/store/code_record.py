"""The record of the code that a run is trained with, and the acceptance of its result for changed code."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from workflow_lib import files
from workflow_lib.errors import ConfigError
from workflow_lib.plan import RunConfig, user_code
from workflow_lib.plan.user_code import CodeRecord
from workflow_lib.store import layout


class Acceptance(TypedDict):
    """A user's decision that the result of other code is valid; `workspace` names the folder with the result."""

    workspace: str
    code: str
    trained_with: str | None
    by: str
    time: str


def keep(workspace: Path, run: RunConfig, expected: str) -> None:
    """Write the text of the code and the digests of the files into the workspace, unless they are there.

    Raises ConfigError if the code no longer has the expected digest.
    """
    now = user_code.record(run)
    if now["digest"] != expected:
        raise ConfigError("the code of the run changed while its training started: run the same command again")
    if not (path := layout.code_file(workspace)).exists():
        files.write_json(path, now)


def kept(workspace: Path) -> CodeRecord | None:
    """Return what `keep` wrote; None if there is nothing, as in workspaces of version 0.1."""
    path = layout.code_file(workspace)
    return files.read_json(path, "digest", "code", "files") if path.exists() else None


def accepted(workspace: Path) -> Acceptance | None:
    """Return the record of `everstep accept` for this workspace, or None; its `workspace` names the accepted one."""
    path = layout.acceptance_file(workspace)
    if not path.exists():
        return None
    record: Acceptance = files.read_json(path, "workspace", "code", "trained_with", "by", "time")
    return record
