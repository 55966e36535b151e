"""Removal of files from the store that Everstep wrote and that no result and no owner needs.

Ownership is decided by leases, not by clocks: an item is leased, then checked again, then removed. A clock only decides
how long something without an owner is left alone because its job may still be in a queue.

A folder is renamed before its files are deleted, so an interrupted clean leaves nothing that looks complete; the next
clean removes the rest. Symbolic links are not followed.
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
from workflow_lib.errors import EverstepError, StateError, UserError
from workflow_lib.files import UNREADABLE, names_in, read_json
from workflow_lib.housekeeping.needed import Needed
from workflow_lib.housekeeping.status import is_held
from workflow_lib.housekeeping.waiting import Waiting
from workflow_lib.processes import is_writer_alive, writer_mark
from workflow_lib.store import layout
from workflow_lib.store.final_checkpoint import is_finished
from workflow_lib.store.lease import Lease

QUEUE_S = 7 * 86400.0  # an unfinished run may be in a queue for this long
DELIVERY_S = 60.0  # a result that names a finished run may be written within this time
REMOVED = re.compile(r"\.trash-([0-9a-f]{20})[0-9a-f]{12}")
PARTIAL_CODE = re.compile(r"\.tmp-([0-9a-f]{20})[0-9a-f]{12}")
TEMPORARY = re.compile(r"\.(.+\.)?(?P<mark>[0-9a-f]{20})[0-9a-f]{12}\.tmp")  # temporary file or folder


@dataclass(frozen=True)
class Removable:
    """A file or folder of the store that nothing needs."""

    path: Path
    why: str
    workspace: Path | None = None  # or folder of data; its lease is held during the removal
    final: checkpoint.Checkpoint | None = None  # must verify before the removal
    is_needed: Callable[[], bool] | None = None  # checked again while the lease is held
    bytes: int = 0  # freed by removing this item and all items listed before it


def removable(work: Path, results: Path) -> list[Removable]:
    """Return everything that may be removed, with sizes. Raises UserError if a result cannot be read."""
    needed = Needed(work, results)
    periodic = _with_periodic_checkpoints(work)
    found: list[Removable] = []
    used_data = set()
    for workspace in layout.all_workspaces(work):
        try:
            items = [] if is_held(workspace) else list(_of_workspace(workspace, needed, periodic))
        except FileNotFoundError:  # another process is changing the workspace
            items = []
        found += items
        if all(item.path != workspace for item in items):
            used_data.add(layout.data_of(workspace))
    data = list(_data(needed, used_data))
    found += [*data, *_parts(work, {item.path for item in data}), *_of_pipelines(needed), *_proofs(work)]
    for path in layout.removals(work):
        mark = REMOVED.fullmatch(path.name)
        if mark is None or not is_writer_alive(mark[1]):
            found.append(Removable(path, "interrupted removal"))
    found = [item for item in found if _is_in(item.path, work)]
    listed = {item.path for item in found}
    return _sized([*found, *_temporary_files(work, listed), *_temporary_files(results, listed)])


def clean(items: list[Removable]) -> Iterator[tuple[Removable, str | None]]:
    """Remove the items; yield each with None, or with the reason why it could not be removed."""
    for item in items:
        try:
            if item.workspace is None or item.path.exists():  # else another clean has removed it
                _remove(item)
        except (OSError, EverstepError) as error:
            yield item, str(error)
        else:
            yield item, None


def _remove(item: Removable) -> None:
    """Remove the item. Raises WorkspaceBusy if it has an owner, UserError if it has become needed."""
    with _lease(item):  # prevents a training or a preparation from starting meanwhile
        if item.final is not None:
            checkpoint.verify(item.final)
        if item.is_needed is not None and item.is_needed():
            raise UserError("it came into use after it was listed")
        if is_folder := item.path.is_dir():
            trash = item.path.rename(item.path.with_name(f".trash-{writer_mark()}{uuid.uuid4().hex[:12]}"))
        else:
            item.path.unlink()
    if is_folder:
        shutil.rmtree(trash)


def _lease(item: Removable) -> AbstractContextManager[Any]:
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
    quiet_s = DELIVERY_S if is_finished(newest) else QUEUE_S
    if experiments is None and _is_quiet(workspace, quiet_s) and _contains_only(workspace, layout.WORKSPACE_CONTENT):
        yield Removable(
            workspace,
            "run that no result names",
            workspace=workspace,
            is_needed=lambda: needed.needs_run(digest) or not _is_quiet(workspace, quiet_s),
        )
        return
    names = names_in(directory)
    for prefix, why in ((".tmp-", "interrupted save"), (".trash-", "interrupted removal")):
        for name in (name for name in names if name.startswith(prefix)):
            yield Removable(directory / name, why, workspace=workspace)
    if newest is None or not is_finished(newest):
        return  # damaged checkpoints stay: they prevent an unfinished run from silently starting over
    for name in (name for name in names if name.startswith("corrupt-")):
        yield Removable(directory / name, "damaged checkpoint of a finished run", workspace=workspace, final=newest)
    if experiments is not None and not experiments & periodic:
        for path in checkpoint.published(directory):
            if path != newest.path:
                yield Removable(path, "older checkpoint of a finished run", workspace=workspace, final=newest)


def _with_periodic_checkpoints(work: Path) -> set[str]:
    """Return the experiments with `checkpoint.keep_every_h`, whose older checkpoints stay."""
    names = set()
    for path in layout.experiment_files(work):
        try:
            content = read_json(path)
            if content["checkpoint"]["keep_every_h"] is not None:
                names.add(content["name"])
        except UNREADABLE:
            continue
    return names


def _data(needed: Needed, used: set[str]) -> Iterator[Removable]:
    """Yield the data that no result names and that no remaining run was trained on."""
    for path in layout.stores(needed.work):
        if path.name in needed.stores or not layout.STORE.fullmatch(path.name) or not path.is_dir():
            continue
        with suppress(FileNotFoundError):  # another process is changing the folder
            if not is_held(path) and (why := _why_data_is_removable(path, used)):
                yield Removable(path, why, workspace=path, is_needed=partial(_is_data_needed, path, why, needed))


def _why_data_is_removable(path: Path, used: Set[str]) -> str | None:
    """Return why data that no result names is not needed; None if it may be needed."""
    if not _contains_only(path, layout.STORE_CONTENT) or _is_locked(layout.old_store_lock(path)):
        return None
    try:
        digest = read_json(layout.store_manifest(path))["digest"]
    except FileNotFoundError:
        return "interrupted preparation of data" if _is_quiet(path, QUEUE_S) else None
    except UNREADABLE:
        return None  # unknown which runs use it
    return None if digest[:12] in used else "data that no result names and no run uses"


def _is_locked(lock: Path) -> bool:
    """Return True while Everstep 0.1, which locked this file instead of taking a lease, prepares the data."""
    try:
        with lock.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _is_data_needed(path: Path, why: str, needed: Needed) -> bool:
    """Return True if a result names the data meanwhile, or if a run that uses it exists."""
    if needed.needs_data(path.name):
        return True
    return why != _why_data_is_removable(
        path, {layout.data_of(workspace) for workspace in layout.all_workspaces(needed.work)}
    )


def _parts(work: Path, removed: Set[Path]) -> Iterator[Removable]:
    """Yield the digests of files read in place that no data which stays has, except recent ones: see QUEUE_S."""
    files = _files_of_data(work, removed)
    for path in layout.parts(work) if files is not None else []:
        with suppress(FileNotFoundError):  # another process is changing the folder
            if layout.PARTS.fullmatch(path.name) and path.is_dir() and _are_parts_removable(path, files):
                yield Removable(path, "digests of a file that no data uses", is_needed=partial(_are_needed, path, work))


def _are_needed(path: Path, work: Path) -> bool:
    return not _are_parts_removable(path, _files_of_data(work))


def _are_parts_removable(path: Path, files: Set[str] | None) -> bool:
    from workflow_lib.data.part_digests import recorded_file

    if files is None or not _is_quiet(path, QUEUE_S) or not _contains_only(path, layout.PARTS_CONTENT):
        return False
    return recorded_file(path) not in files


def _files_of_data(work: Path, removed: Set[Path] = frozenset()) -> set[str] | None:
    """Return the digests of the source files of the data in the store; None if a manifest cannot be read."""
    files: set[str] = set()
    for path in layout.stores(work):
        try:
            if path not in removed:
                files.update(read_json(layout.store_manifest(path))["sources"].values())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except UNREADABLE:
            return None
    return files


def _of_pipelines(needed: Needed) -> Iterator[Removable]:
    """Yield what jobs of pipelines read, unless it is recent or a pipeline that needs it may start more jobs."""
    waiting = Waiting()

    def is_old(path: Path) -> bool:
        return _is_quiet(path, QUEUE_S) and not waiting.is_any(needed.projects())

    yield from _frozen_experiments(needed, is_old)
    yield from _packs(needed.work, is_old)
    yield from _code(needed.work, waiting)


def _frozen_experiments(needed: Needed, is_old: Callable[[Path], bool]) -> Iterator[Removable]:
    for path in layout.experiment_files(needed.work):
        try:
            name = read_json(path)["name"]
            if not needed.has_results(str(name)) and is_old(path):
                yield Removable(path, f"experiment {name}, which has no results")
        except UNREADABLE:
            continue


def _packs(work: Path, is_old: Callable[[Path], bool]) -> Iterator[Removable]:
    """Yield lists of the runs of packs, and results prepared for pipelines that have ended."""
    for path in layout.pack_files(work):
        with suppress(FileNotFoundError):
            if is_old(path):
                yield Removable(path, "list of the runs of a pack")
    for path, mark in layout.ready_dirs(work):
        is_alive = is_writer_alive(mark)
        with suppress(FileNotFoundError):  # its pipeline removes it at its end
            if is_alive is False or (is_alive is None and is_old(path)):
                yield Removable(path, "results that a pack has prepared for a pipeline that has ended")


def _code(work: Path, waiting: Waiting) -> Iterator[Removable]:
    """Yield snapshots of code that no job has used for a week, and partial ones."""
    for path in layout.code_snapshots(work):
        if layout.CODE.fullmatch(path.name) and not _is_code_used(path, waiting):
            is_needed = partial(_is_code_used, path, waiting)
            yield Removable(path, "code that no job used for a week", is_needed=is_needed)
        elif (partial_copy := PARTIAL_CODE.fullmatch(path.name)) and is_writer_alive(partial_copy[1]) is False:
            yield Removable(path, "interrupted copy of the code")


def _is_code_used(path: Path, waiting: Waiting) -> bool:
    record = layout.code_snapshot_record(path)
    try:
        if time.time() - os.lstat(record).st_mtime < QUEUE_S:
            return True
        return waiting.is_any([Path(read_json(record, "project")["project"])])
    except (FileNotFoundError, NotADirectoryError):  # not by Everstep, or removed meanwhile
        return True
    except StateError:  # damaged: no job can use it
        return False


def _proofs(work: Path) -> Iterator[Removable]:
    for path in layout.proofs(work):
        if layout.PROOF.fullmatch(path.name) and not is_held(path):
            yield Removable(path, "remains of a proof of exact resume", workspace=path)


def _temporary_files(folder: Path, listed: Set[Path]) -> Iterator[Removable]:
    """Yield temporary files and folders of ended writers that are not in a listed item; of other hosts after a week."""
    for parent, folders, names in os.walk(folder):
        marks = {name: found["mark"] for name in (*folders, *names) if (found := TEMPORARY.fullmatch(name))}
        folders[:] = [name for name in folders if name not in marks]
        for name, mark in sorted(marks.items()):
            path = Path(parent, name)
            if not listed.isdisjoint(path.parents) or not _is_in(path, folder):
                continue
            is_alive = is_writer_alive(mark)
            with suppress(FileNotFoundError):  # its writer has renamed it meanwhile
                if is_alive is False or (is_alive is None and _is_quiet(path, QUEUE_S)):
                    why = "folder of a killed pack" if path.is_dir() else "file of an interrupted write"
                    yield Removable(path, f"temporary {why}")


def _sized(items: Sequence[Removable]) -> list[Removable]:
    """Return the items with the bytes they free; a file with several links is freed with its last one."""
    links = Counter[tuple[int, int]]()  # seen so far, by device and inode
    sized = []
    for item in items:
        freed = 0
        with suppress(FileNotFoundError):  # another process is changing the folder
            for file in (os.lstat(path) for path in _walk(item.path)):
                links[file.st_dev, file.st_ino] += 1
                if links[file.st_dev, file.st_ino] == file.st_nlink and not stat.S_ISDIR(file.st_mode):
                    freed += file.st_size
        sized.append(replace(item, bytes=freed))
    return sized


def _walk(path: Path, left_out: Set[str] = frozenset()) -> Iterator[str]:
    """Yield the path and, for a folder, everything below it except for these names; symbolic links are not followed.

    Raises FileNotFoundError if a folder is removed meanwhile.
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


def _contains_only(folder: Path, known: re.Pattern[str]) -> bool:
    """Return True if Everstep may have written everything in the folder, so that it contains no files of a user."""
    return all(known.fullmatch(path.name) and not path.is_symlink() for path in folder.iterdir())


def _is_quiet(path: Path, seconds: float) -> bool:
    """Return True if nothing was written there for so long. Locks and leases do not count, since readers write them."""
    written = [os.lstat(file).st_mtime for file in _walk(path, layout.LOCKS)]
    return time.time() - max(written) > seconds
