"""Where everything in work/ lies."""

from __future__ import annotations

import re
from pathlib import Path


def attempts_dir(workspace: Path) -> Path:
    """Folder of the attempts' records."""
    return workspace / "attempts"


def checkpoints_dir(workspace: Path) -> Path:
    """Folder of the checkpoints."""
    return workspace / "checkpoints"


def leases_dir(workspace: Path) -> Path:
    """Folder of the lease files."""
    return workspace / "leases"


def metrics_file(workspace: Path) -> Path:
    """The run's curve."""
    return workspace / "metrics.jsonl"


def events_file(workspace: Path) -> Path:
    """What happened in all attempts."""
    return workspace / "events.jsonl"


def delivered_file(workspace: Path) -> Path:
    """Each time that the run was needed and its result handed out."""
    return workspace / "delivered.jsonl"


WORKSPACE = re.compile(r"[0-9a-f]{12}(-[0-9a-f]{12})?")  # the data, the code; workspaces of version 0.1 have no code


def workspace_path(work: Path, run: str, data: str, code: str) -> Path:
    """Return the workspace of a run with this data and this code."""
    return work / "runs" / run / f"{data[:12]}-{code[:12]}"


def workspaces(work: Path, run: str, data: str = "") -> list[Path]:
    """Return the run's workspaces with any code, sorted; only those with this data, if it is given."""
    found = (work / "runs" / run).glob(f"{data[:12]}*")
    return sorted(path for path in found if WORKSPACE.fullmatch(path.name) and path.is_dir())


def acceptance_file(workspace: Path) -> Path:
    """Return the path of the record that the result of another workspace is accepted for this one."""
    return workspace.with_name(f"{workspace.name}.accepted.json")
