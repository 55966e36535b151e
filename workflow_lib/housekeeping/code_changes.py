"""User decisions after a change of the code: accept the result of a finished run, or retrain it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from workflow_lib import plan
from workflow_lib.checkpoint import Checkpoint
from workflow_lib.errors import UserError
from workflow_lib.files import read_json, write_json
from workflow_lib.plan import user_code
from workflow_lib.processes import user
from workflow_lib.results import layout as results_layout
from workflow_lib.results import source_weights
from workflow_lib.results.layout import RESULTS
from workflow_lib.store import layout
from workflow_lib.store.attempts import utc_now
from workflow_lib.store.final_checkpoint import find_final_checkpoint
from workflow_lib.store.lease import Lease


def accept(ref: str, work: Path) -> str:
    """Record that the newest result of the run is valid for the current code; return a message."""
    run, digest = plan.load_run(ref, work)
    code = user_code.digest(run, source_weights.digests(run, RESULTS))
    accepted = []
    for data in sorted({path.name[:12] for path in layout.workspaces(work, digest)}):
        workspace = layout.workspace_path(work, digest, data, code)
        if find_final_checkpoint(workspace) is not None:
            return f"{ref}: finished with the current code; there is nothing to accept"
        finished = [found for path in layout.workspaces(work, digest, data) if (found := find_final_checkpoint(path))]
        if finished:
            newest: Checkpoint = max(finished, key=lambda final: final.manifest["created"])
            record = {
                "workspace": layout.parent_workspace(newest.path).name,
                "code": code,
                "trained_with": newest.manifest["fingerprint"].get("code"),
                "by": user(),
                "time": utc_now(),
            }
            write_json(layout.acceptance_file(workspace), record)
            accepted.append(layout.parent_workspace(newest.path))
    if not accepted:
        raise UserError(f"{ref}: no finished training to accept in {layout.runs_dir(work) / digest}")
    return f"{ref}: {', '.join(map(str, accepted))} is accepted for the current code; the pipeline does not retrain"


def retrain(ref: str, work: Path, results: Path) -> str:
    """Rename the run's workspaces of the current code and the results of them, so that the pipeline trains it again.

    Returns a message with the new names, one line each.
    """
    run, digest = plan.load_run(ref, work)
    code = user_code.digest(run, source_weights.digests(run, results))
    stamp = utc_now().replace(":", "").replace("-", "").partition(".")[0]
    lines = []
    for data in sorted({path.name[:12] for path in layout.workspaces(work, digest)}):
        workspace = layout.workspace_path(work, digest, data, code)
        if (record := layout.acceptance_file(workspace)).exists():
            record.unlink()
            lines.append(f"{ref}: the acceptance for the current code is withdrawn")
        if workspace.is_dir():
            with Lease.acquire(workspace, "retrain", timeout_s=60.0):
                aside = workspace.rename(workspace.with_name(f"{workspace.name}.aside-{stamp}"))
            lines.append(f"{ref}: its state is now in {aside}; delete that folder when you do not need it")
    if not lines:
        raise UserError(f"{ref}: nothing was trained with the current code, so there is nothing to move aside")
    for path in _results_of(digest, results):
        path.rename(path.with_name(f".{path.name}.aside-{stamp}"))
        lines.append(f"{path} will be regenerated, with everything that depends on it")
    return "\n".join(lines)


def _results_of(digest: str, results: Path) -> Iterator[Path]:
    """Yield the result files that name a training of the run; the pipeline regenerates missing ones."""
    for path in results_layout.all_trainings(results):
        if read_json(path, "digest")["digest"] == digest:
            yield path
    for path in results_layout.all_trials(results):
        if read_json(path, "run")["run"]["digest"] == digest:
            yield path
