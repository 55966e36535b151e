"""What may be removed from the store: only what Everstep itself put there, and what no result and no owner needs.

Owners are asked, not clocks: what is removed is first leased, and then looked at once more. A clock decides only how
long what has no owner may still be waiting in a queue.

A folder is renamed before its files are deleted, so that a clean that is cut off leaves nothing that could be taken for
whole; the next one removes the rest. No symbolic link is followed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from workflow_lib import checkpoint
from workflow_lib.errors import EverstepError, UserError
from workflow_lib.files import UNREADABLE, names_in, read_json
from workflow_lib.housekeeping.needed import Needed
from workflow_lib.housekeeping.status import is_held
from workflow_lib.processes import is_writer_alive, writer_mark
from workflow_lib.store import layout
from workflow_lib.store.final_checkpoint import is_finished
from workflow_lib.store.lease import Lease

WAITING_S = 7 * 86400.0  # for so long, what is unfinished may be waiting in a queue
HANDING_OUT_S = 60.0  # for so long, what is finished may be about to be named by a result
REMOVED = re.compile(r"\.trash-([0-9a-f]{20})[0-9a-f]{12}")
UNWRITTEN = re.compile(r"\.(.+\.)?(?P<mark>[0-9a-f]{20})[0-9a-f]{12}\.tmp")  # a file that is not whole yet


@dataclass(frozen=True)
class Removable:
    """Something in the store that nothing needs."""

    path: Path
    why: str
    workspace: Path | None = None  # or folder of data, whose lease is held while it is removed
    sealed: checkpoint.Checkpoint | None = None  # what must be whole before it is
    is_needed: Callable[[], bool] | None = None  # asked once more when the lease is held
    bytes: int = 0  # that are free when it is gone, and all that is listed before it


def removable(work: Path, results: Path) -> list[Removable]:
    """What nothing needs, with what it frees. Raises UserError when a result that may name something cannot be read."""
    needed = Needed(work, results)
    periodic = _with_periodic_checkpoints(work)
    found: list[Removable] = []
    used = set()
    for workspace in layout.all_workspaces(work):
        try:
            items = [] if is_held(workspace) else list(_of_workspace(workspace, needed, periodic))
        except FileNotFoundError:  # somebody is at work there
            items = []
        found += items
        if all(item.path != workspace for item in items):
            used.add(layout.data_of(workspace))
    found += [*_data(needed, used), *_snapshots(needed), *_proofs(work)]
    for path in layout.removals(work):
        mark = REMOVED.fullmatch(path.name)
        if mark is None or not is_writer_alive(mark[1]):
            found.append(Removable(path, "removal that was cut off"))
    found = [item for item in found if _is_in(item.path, work)]
    listed = {item.path for item in found}
    return _sized([*found, *_unwritten(work, listed), *_unwritten(results, listed)])


def clean(items: list[Removable]) -> Iterator[tuple[Removable, str | None]]:
    """Each item with None once it is removed, or why it is left."""
    for item in items:
        try:
            if item.workspace is None or item.path.exists():  # else another clean was faster
                _remove(item)
        except (OSError, EverstepError) as error:
            yield item, str(error)
        else:
            yield item, None


def _remove(item: Removable) -> None:
    """The item is gone; WorkspaceBusy if somebody owns it, UserError if it is needed by now."""
    with _owned(item):  # inside, no training and no preparation begins in what is removed
        if item.sealed is not None:
            checkpoint.verify(item.sealed)
        if item.is_needed is not None and item.is_needed():
            raise UserError("it came into use after it was listed")
        if is_folder := item.path.is_dir():
            trash = item.path.rename(item.path.with_name(f".trash-{writer_mark()}{uuid.uuid4().hex[:12]}"))
        else:
            item.path.unlink()
    if is_folder:
        shutil.rmtree(trash)


def _owned(item: Removable) -> AbstractContextManager[Any]:
    return (
        nullcontext()
        if item.workspace is None
        else Lease.acquire(item.workspace, "clean", timeout_s=60.0, on_full_disk=True)
    )


def _of_workspace(workspace: Path, needed: Needed, periodic: set[str]) -> Iterator[Removable]:
    directory = layout.checkpoints_dir(workspace)
    newest = checkpoint.read_newest(directory)
    digest = layout.run_of(workspace)
    experiments = needed.runs.get(digest)
    rest_s = HANDING_OUT_S if is_finished(newest) else WAITING_S
    if experiments is None and _is_quiet(workspace, rest_s) and _holds_only(workspace, layout.WORKSPACE_CONTENT):
        yield Removable(
            workspace,
            "run that no result names",
            workspace=workspace,
            is_needed=lambda: needed.needs_run(digest) or not _is_quiet(workspace, rest_s),
        )
        return
    names = names_in(directory)
    for prefix, why in ((".tmp-", "save that was cut off"), (".trash-", "removal that was cut off")):
        for name in (name for name in names if name.startswith(prefix)):
            yield Removable(directory / name, why, workspace=workspace)
    if newest is None or not is_finished(newest):
        return  # what does not verify keeps an unfinished run from silently beginning again
    for name in (name for name in names if name.startswith("corrupt-")):
        yield Removable(directory / name, "damaged checkpoint of a finished run", workspace=workspace, sealed=newest)
    if experiments is not None and not experiments & periodic:
        for path in checkpoint.published(directory):
            if path != newest.path:
                yield Removable(path, "older checkpoint of a finished run", workspace=workspace, sealed=newest)


def _with_periodic_checkpoints(work: Path) -> set[str]:
    """Experiments that asked to keep a checkpoint every so many hours."""
    asked = set()
    for path in layout.experiment_files(work):
        try:
            content = read_json(path)
            if content["checkpoint"]["keep_every_h"] is not None:
                asked.add(content["name"])
        except UNREADABLE:
            continue
    return asked


def _data(needed: Needed, used: set[str]) -> Iterator[Removable]:
    """Yield the data that no result names and that no remaining run was trained on."""
    for path in layout.stores(needed.work):
        if path.name in needed.stores or not layout.STORE.fullmatch(path.name) or not path.is_dir():
            continue
        with suppress(FileNotFoundError):  # somebody is at work there
            if not is_held(path) and (why := _why_data_goes(path, used)):
                yield Removable(path, why, workspace=path, is_needed=partial(_is_data_needed, path, why, needed))


def _why_data_goes(path: Path, used: Set[str]) -> str | None:
    """Return why this data, which no result names, is not needed; None if it is needed, or if that is not known."""
    if not _holds_only(path, layout.STORE_CONTENT) or _is_locked(layout.old_store_lock(path)):
        return None
    try:
        digest = read_json(layout.store_manifest(path))["digest"]
    except FileNotFoundError:
        return "preparation of data that was cut off" if _is_quiet(path, WAITING_S) else None
    except UNREADABLE:
        return None  # which runs use it is not known
    return None if digest[:12] in used else "data that no result names and no run uses"


def _is_locked(lock: Path) -> bool:
    """Return True while Everstep 0.1, which locked this file instead of taking a lease, prepares the data."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _is_data_needed(path: Path, why: str, needed: Needed) -> bool:
    """Return True if a result names the data by now, or a run was begun on it or not removed."""
    if needed.needs_data(path.name):
        return True
    return why != _why_data_goes(path, {layout.data_of(workspace) for workspace in layout.all_workspaces(needed.work)})


def _snapshots(needed: Needed) -> Iterator[Removable]:
    """Frozen experiments without results: jobs may wait in a queue for a young one."""
    for path in layout.experiment_files(needed.work):
        try:
            name = read_json(path)["name"]
            if not needed.has_results(str(name)) and _is_quiet(path, WAITING_S):
                yield Removable(path, f"experiment {name}, which has no results")
        except UNREADABLE:
            continue


def _proofs(work: Path) -> Iterator[Removable]:
    for path in layout.proofs(work):
        if layout.PROOF.fullmatch(path.name) and not is_held(path):
            yield Removable(path, "what a proof of exact resume left", workspace=path)


def _unwritten(folder: Path, listed: Set[Path]) -> Iterator[Removable]:
    """Files whose writer is gone, outside of what is listed already; one of another host, after a week."""
    for parent, _, names in os.walk(folder):
        for name, mark in sorted((name, found["mark"]) for name in names if (found := UNWRITTEN.fullmatch(name))):
            path = Path(parent, name)
            if not listed.isdisjoint(path.parents) or not _is_in(path, folder):
                continue
            is_alive = is_writer_alive(mark)
            with suppress(FileNotFoundError):  # it has its name by now
                if is_alive is False or (is_alive is None and _is_quiet(path, WAITING_S)):
                    yield Removable(path, "file whose writing was cut off")


def _sized(items: Sequence[Removable]) -> list[Removable]:
    """The items with what they free; a file of several names, such as a shard of two data sets, with its last one."""
    names = Counter[tuple[int, int]]()
    sized = []
    for item in items:
        freed = 0
        with suppress(FileNotFoundError):  # somebody is at work there
            for file in (os.lstat(path) for path in _with_all_below(item.path)):
                names[file.st_dev, file.st_ino] += 1
                if names[file.st_dev, file.st_ino] == file.st_nlink and not stat.S_ISDIR(file.st_mode):
                    freed += file.st_size
        sized.append(replace(item, bytes=freed))
    return sized


def _with_all_below(path: Path, left_out: Set[str] = frozenset()) -> Iterator[str]:
    """The path and, of a folder, all below it, but for these names and what they hold; no symbolic link is followed.

    Raises FileNotFoundError when a folder goes meanwhile: somebody is at work there.
    """
    yield str(path)
    for parent, folders, names in os.walk(path, onerror=_raise_if_gone):
        folders[:] = [name for name in folders if name not in left_out]
        yield from (f"{parent}{os.sep}{name}" for name in (*folders, *names) if name not in left_out)


def _raise_if_gone(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):
        raise error


def _is_in(path: Path, folder: Path) -> bool:
    """Return True if the path is in the folder, and neither it nor a folder on the way is a symbolic link."""
    return path.resolve() == folder.resolve() / path.relative_to(folder)


def _holds_only(folder: Path, known: re.Pattern[str]) -> bool:
    """Return True if everything in the folder is of a kind that Everstep writes, so that no user keeps files there."""
    return all(known.fullmatch(path.name) and not path.is_symlink() for path in folder.iterdir())


def _is_quiet(path: Path, seconds: float) -> bool:
    """Return True if nothing was written there for so long; locks and leases, which readers write, do not count."""
    written = [os.lstat(file).st_mtime for file in _with_all_below(path, layout.LOCKS)]
    return time.time() - max(written) > seconds
