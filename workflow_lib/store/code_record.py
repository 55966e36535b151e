"""Records of the code that a run was trained with, and of a user's acceptance of its result for changed code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from workflow_lib import files
from workflow_lib.errors import ConfigError
from workflow_lib.plan import RunConfig, user_code
from workflow_lib.plan.user_code import CodeRecord
from workflow_lib.store import layout


class Acceptance(TypedDict):
    """A user's decision that a result of other code is valid; `workspace` is the name of the folder with the result."""

    workspace: str
    code: str
    trained_with: str | None
    by: str
    time: str


def write(workspace: Path, run: RunConfig, expected: str, weights: Mapping[str, str] | None = None) -> None:
    """Write the text of the code and the digests of the files to the workspace, unless the record exists.

    `weights` are the digests of the weights of other runs that it uses, by setting.

    Raises ConfigError if the code no longer has the expected digest.
    """
    current = user_code.record(run, weights)
    if current["digest"] != expected:
        raise ConfigError("the code of the run changed while its training started: run the same command again")
    if not (path := layout.code_file(workspace)).exists():
        files.write_json(path, current)


def read(workspace: Path) -> CodeRecord | None:
    """Return the record of the code; None if there is none, as in workspaces of version 0.1."""
    path = layout.code_file(workspace)
    return files.read_json(path, "digest", "code", "files") if path.exists() else None


def read_acceptance(workspace: Path) -> Acceptance | None:
    """Return the acceptance of another workspace's result for this workspace, or None."""
    path = layout.acceptance_file(workspace)
    if not path.exists():
        return None
    record: Acceptance = files.read_json(path, "workspace", "code", "trained_with", "by", "time")
    return record
