"""What the store holds: the state of every run, told from its files alone, and what could be removed from it.

Nothing here waits for a lock or disturbs a live owner; another host's processes are judged by their heartbeat.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_lib import checkpoint
from workflow_lib.errors import CheckpointError, WorkspaceBusy
from workflow_lib.files import read_json
from workflow_lib.runtime import workspace as ws
from workflow_lib.runtime.lease import Lease, holder_of
from workflow_lib.runtime.log import read_events

Row = dict[str, Any]


def runs(work: Path, results: Path) -> list[Row]:
    """One row a run and data, the newest activity first."""
    names = _names(results)
    rows = [_row(workspace, names) for workspace in workspaces(work)]
    return sorted(rows, key=lambda row: row["updated"], reverse=True)


def workspaces(work: Path) -> list[Path]:
    """Folders of the runs that were begun."""
    return sorted(path.parent for path in work.glob("runs/*/*/attempts"))


def table(rows: list[Row]) -> str:
    """The rows for a terminal."""
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    if not rows:
        return "no run has been started here"
    shown = Table(box=None, pad_edge=False)
    for heading in ("run", "state", "step", "epoch", "samples/s", "last checkpoint", "attempts", "owner"):
        shown.add_column(
            heading, overflow="fold", justify="right" if heading in ("step", "epoch", "samples/s") else "left"
        )
    for row in rows:
        steps = f"{row['step']}/{row['steps']}" if row["steps"] else str(row["step"])
        speed = f"{row['samples_per_s']:,.0f}" if row["samples_per_s"] else "-"
        last = "-" if row["checkpoint_age_s"] is None else f"{_age(row['checkpoint_age_s'])} ago"
        shown.add_row(
            row["run"], row["state"], steps, str(row["epoch"]), speed, last, _ends(row["attempts"]), row["owner"] or "-"
        )
    width = max(100, shutil.get_terminal_size((140, 24)).columns)
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(shown)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


def _row(workspace: Path, names: dict[str, str]) -> Row:
    digest = workspace.parent.name
    attempts = ws.list_attempts(workspace)
    newest = _newest(workspace)
    holder = holder_of(workspace)
    progress = [event for event in read_events(ws.events_file(workspace)) if event.get("kind") in ("progress", "epoch")]
    seen: Row = progress[-1] if progress else {}
    saved = newest.step if newest else 0
    is_finished = newest is not None and newest.about["cursor"]["phase"] == "finish"
    last = attempts[-1] if attempts else None
    if is_finished:
        state = "finished"
    elif holder is not None:
        state = "running"
    elif last is None or last.reason is None:
        state = "killed" if last else "new"
    else:
        state = last.reason.split(":")[0]
    return {
        "run": names.get(digest, digest[:12]),
        "digest": digest,
        "data": workspace.name,
        "state": state,
        "step": max(saved, seen.get("step", 0)) if state == "running" else saved,
        "steps": seen.get("steps"),
        "epoch": newest.about["cursor"]["epoch"] if newest else 0,
        "samples_per_s": seen.get("samples_per_s") if state == "running" else None,
        "exact": newest.about["exact"] if newest else True,
        "checkpoint": newest.path.name if newest else None,
        "checkpoint_age_s": time.time() - newest.manifest["created"] if newest else None,
        "attempts": [
            {
                "attempt": one.attempt,
                "ended": one.reason or ("running" if holder and holder.attempt == one.attempt else "killed"),
                "step": one.step,
                "seconds": one.seconds,
                "host": one.host,
                "job": one.job,
            }
            for one in attempts
        ],
        "owner": str(holder) if holder else None,
        "updated": last.ended or last.began if last else "",
    }


def _newest(workspace: Path) -> checkpoint.Checkpoint | None:
    for path in reversed(checkpoint.published(ws.checkpoints_dir(workspace))):
        try:
            return checkpoint.read_manifest(path)
        except CheckpointError:
            continue
    return None


def _names(results: Path) -> dict[str, str]:
    """Names that the plans give to the runs: the first one found."""
    names: dict[str, str] = {}
    for path in sorted(results.glob("*/plan.json")):
        for run in read_json(path)["runs"]:
            names.setdefault(run["digest"], run["id"])
    return names


def _ends(attempts: list[Row]) -> str:
    """How the attempts ended, equal ones in a row counted."""
    parts: list[tuple[str, int]] = []
    for one in attempts:
        end = one["ended"].split(":")[0]
        if parts and parts[-1][0] == end:
            parts[-1] = (end, parts[-1][1] + 1)
        else:
            parts.append((end, 1))
    return ", ".join(end if count == 1 else f"{count} x {end}" for end, count in parts)


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


# -- cleaning -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Removable:
    """Something in the store that no result needs."""

    path: Path
    why: str
    workspace: Path | None  # whose lease is to be held while it is removed

    @property
    def size(self) -> int:
        """Bytes on disk, by file sizes."""
        return sum(path.lstat().st_size for path in self.path.rglob("*") if path.is_file())


def removable(work: Path, results: Path) -> list[Removable]:
    """What ``clean`` would remove: never a thing of a live owner, nor the state of a run that a result names."""
    needed_runs, needed_data = _needed(results)
    found: list[Removable] = []
    for workspace in workspaces(work):
        if holder_of(workspace) is not None:
            needed_runs.add(workspace.parent.name)
            continue
        if workspace.parent.name in needed_runs:
            found += _in_workspace(workspace)
        else:
            found.append(Removable(workspace, "run that no result names", workspace))
    found += [
        Removable(path, "data that no result names", None)
        for path in sorted(work.glob("data/*"))
        if path.is_dir() and path.name not in needed_data and not _is_used(work, needed_runs)
    ]
    found += [Removable(path, "proof of exact resume that failed", None) for path in sorted(work.glob("prove/*"))]
    return found


def clean(items: list[Removable]) -> Iterator[tuple[Removable, str | None]]:
    """Each item with None when it is removed, or why it was left."""
    for item in items:
        try:
            if item.workspace is None:
                _remove(item.path)
            else:
                with Lease.acquire(item.workspace, "clean", timeout_s=60.0):
                    _remove(item.path)
        except (OSError, WorkspaceBusy) as error:
            yield item, str(error)
        else:
            yield item, None


def _remove(path: Path) -> None:
    trash = path.with_name(f".trash-{path.name}")
    path.rename(trash)
    shutil.rmtree(trash)


def _in_workspace(workspace: Path) -> Iterator[Removable]:
    directory = ws.checkpoints_dir(workspace)
    for pattern, why in ((".tmp-*", "save that was cut off"), ("corrupt-*", "checkpoint that does not verify")):
        for path in sorted(directory.glob(pattern)):
            yield Removable(path, why, workspace)
    newest = _newest(workspace)
    if newest is not None and newest.about["cursor"]["phase"] == "finish":
        for path in checkpoint.published(directory):
            if path != newest.path:
                yield Removable(path, "older checkpoint of a finished run", workspace)


def _needed(results: Path) -> tuple[set[str], set[str]]:
    """Digests of the runs, and folders of the data, that plans, studies and manifests name."""
    runs, data = set(), set()
    for path in results.glob("*/plan.json"):
        runs |= {run["digest"] for run in read_json(path)["runs"]}
    for pattern in ("*/tune/*/suggest-*.json", "*/tune/*/best.json"):
        runs |= {read_json(path)["run"]["digest"] for path in results.glob(pattern)}
    for path in results.glob("*/data/*.json"):
        data.add(read_json(path)["store"])
    return runs, data


def _is_used(work: Path, runs: set[str]) -> bool:
    return any(holder_of(workspace) is not None for workspace in workspaces(work) if workspace.parent.name in runs)
