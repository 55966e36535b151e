"""What may be removed from the store: only what Everstep itself put there, and what no result and no owner needs.

A folder is renamed before its files are deleted, so that a clean that is cut off leaves nothing that could be taken for
whole; the next one removes the rest. No symbolic link is followed.
"""

from __future__ import annotations

import re
import shutil
import stat
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workflow_lib import checkpoint
from workflow_lib.errors import EverstepError, UserError
from workflow_lib.files import read_json
from workflow_lib.runtime import workspace as ws
from workflow_lib.runtime.lease import Lease
from workflow_lib.status import UNREADABLE, is_finished, is_held, workspaces

WAITING_S = 7 * 86400.0  # for so long, what is unfinished may be waiting in a queue
WRITING_S = 3600.0  # for so long, a file may be being written
HANDING_OUT_S = 60.0  # for so long, what is finished may be about to be named by a result
TRASH = ".trash-*"
UNWRITTEN = re.compile(r"\.(.+\.)?[0-9a-f]{32}\.tmp")  # a file that is not whole yet
# what Everstep puts into a workspace and into a folder of shards
OF_A_RUN = re.compile(r"attempts|checkpoints|leases|code\.json|(metrics|events|delivered)\.jsonl|\..*\.tmp")
OF_DATA = re.compile(r"(train|val|test)-\d{12}-\d{12}(-[0-9a-f]{32})?\.safetensors|manifest\.json|\.lock|\..*\.tmp")


@dataclass(frozen=True)
class Removable:
    """Something in the store that nothing needs."""

    path: Path
    why: str
    workspace: Path | None = None  # whose lease is held while it is removed
    sealed: checkpoint.Checkpoint | None = None  # what must be whole before it is
    bytes: int = 0  # that are free when it is gone, and all that is listed before it


def removable(work: Path, results: Path) -> list[Removable]:
    """What nothing needs, with what it frees. Raises UserError when a result that may name something cannot be read."""
    needed, stores = _needed(results)
    periodic = _with_periodic_checkpoints(work)
    found: list[Removable] = []
    used = set()
    for workspace in workspaces(work):
        try:
            items = [] if is_held(workspace) else list(_of_workspace(workspace, needed, periodic))
        except FileNotFoundError:  # somebody is at work there
            items = []
        found += items
        if all(item.path != workspace for item in items):
            used.add(workspace.name[:12])
    found += [*_data(work, stores, used), *_snapshots(work, results), *_proofs(work)]
    for place in ("runs/*", "data", "prove", "experiments"):
        found += [Removable(path, "removal that was cut off") for path in sorted(work.glob(f"{place}/{TRASH}"))]
    found = [item for item in found if _is_in(item.path, work)]
    listed = {item.path for item in found}
    return _sized([*found, *_unwritten(work, listed), *_unwritten(results, listed)])


def clean(items: list[Removable]) -> Iterator[tuple[Removable, str | None]]:
    """Each item with None once it is removed, or why it is left."""
    for item in items:
        try:
            if item.sealed is not None:
                checkpoint.verify(item.sealed)
            with _owned(item):
                if is_folder := item.path.is_dir():
                    trash = item.path.rename(item.path.with_name(f".trash-{uuid.uuid4().hex}"))
                else:
                    item.path.unlink()
            if is_folder:
                shutil.rmtree(trash)
        except (OSError, EverstepError) as error:
            yield item, str(error)
        else:
            yield item, None


def _owned(item: Removable) -> AbstractContextManager[Any]:
    """Inside, no training and no preparation can begin in what is removed."""
    from filelock import FileLock

    if item.workspace is not None:
        return Lease.acquire(item.workspace, "clean", timeout_s=60.0)
    is_data = item.path.parent.name == "data" and item.path.is_dir()
    return FileLock(item.path / ".lock", timeout=0) if is_data else nullcontext()


def _needed(results: Path) -> tuple[dict[str, set[str]], set[str]]:
    """What results name: the digests of runs, each with its experiments, and folders of data."""
    runs: dict[str, set[str]] = {}
    stores = set()
    for pattern in ("plan.json", "runs/*/train.json", "tune/*/suggest-*.json", "tune/*/best.json", "data/*.json"):
        for path in results.glob(f"*/{pattern}"):
            try:
                content = read_json(path)
                if pattern == "data/*.json":
                    stores.add(content["store"])
                else:
                    for digest in _digests(content):
                        runs.setdefault(digest, set()).add(path.relative_to(results).parts[0])
            except UNREADABLE as error:
                raise UserError(
                    f"{path} cannot be read ({error}), so what it needs is not known, and nothing was removed. Delete "
                    f"the file, or have it made again"
                ) from error
    return runs, stores


def _digests(content: Mapping[str, Any]) -> list[str]:
    """The runs that a plan, a statement or a file of a study names."""
    if "runs" in content:
        return [run["digest"] for run in content["runs"]]
    return [content["digest"] if "digest" in content else content["run"]["digest"]]


def _of_workspace(workspace: Path, needed: Mapping[str, set[str]], periodic: set[str]) -> Iterator[Removable]:
    directory = ws.checkpoints_dir(workspace)
    newest = checkpoint.read_newest(directory)
    experiments = needed.get(workspace.parent.name)
    rest_s = HANDING_OUT_S if is_finished(newest) else WAITING_S
    if experiments is None and _is_quiet(workspace, rest_s) and _holds_only(workspace, OF_A_RUN):
        yield Removable(workspace, "run that no result names", workspace=workspace)
        return
    for pattern, why in ((".tmp-*", "save that was cut off"), (TRASH, "removal that was cut off")):
        for path in sorted(directory.glob(pattern)):
            yield Removable(path, why, workspace=workspace)
    if newest is None or not is_finished(newest):
        return  # what does not verify keeps an unfinished run from silently beginning again
    for path in sorted(directory.glob("corrupt-*")):
        yield Removable(path, "damaged checkpoint of a finished run", workspace=workspace, sealed=newest)
    if experiments is not None and not experiments & periodic:
        for path in checkpoint.published(directory):
            if path != newest.path:
                yield Removable(path, "older checkpoint of a finished run", workspace=workspace, sealed=newest)


def _with_periodic_checkpoints(work: Path) -> set[str]:
    """Experiments that asked to keep a checkpoint every so many hours."""
    asked = set()
    for path in work.glob("experiments/*.json"):
        try:
            content = read_json(path)
            if content["checkpoint"]["keep_every_h"] is not None:
                asked.add(content["name"])
        except UNREADABLE:
            continue
    return asked


def _data(work: Path, named: set[str], used: set[str]) -> Iterator[Removable]:
    """Data that no result names and no run that stays was trained on."""
    for path in sorted(work.glob("data/*")):
        if path.name in named or not re.fullmatch("[0-9a-f]{32}", path.name) or not path.is_dir():
            continue
        if not _holds_only(path, OF_DATA) or _is_being_prepared(path):
            continue
        try:
            digest: str | None = read_json(path / "manifest.json")["digest"]
        except FileNotFoundError:
            digest = None
        except UNREADABLE:
            continue  # which runs use it is not known
        if digest is None and _is_quiet(path, WAITING_S):
            yield Removable(path, "preparation of data that was cut off")
        elif digest is not None and digest[:12] not in used:
            yield Removable(path, "data that no result names and no run uses")


def _is_being_prepared(store: Path) -> bool:
    from filelock import FileLock, Timeout

    if not (store / ".lock").exists():
        return False
    try:
        with FileLock(store / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def _snapshots(work: Path, results: Path) -> Iterator[Removable]:
    """Frozen experiments without results: jobs may wait in a queue for a young one."""
    for path in sorted(work.glob("experiments/*.json")):
        try:
            name = read_json(path)["name"]
        except UNREADABLE:
            continue
        if not (results / str(name)).exists() and _is_quiet(path, WAITING_S):
            yield Removable(path, f"experiment {name}, which has no results")


def _proofs(work: Path) -> Iterator[Removable]:
    for path in sorted(work.glob("prove/*")):
        if re.fullmatch("[0-9a-f]{12}", path.name) and not is_held(path):
            yield Removable(path, "what a proof of exact resume left", workspace=path)


def _unwritten(folder: Path, listed: Set[Path]) -> Iterator[Removable]:
    """Files whose writer was killed, outside of what is listed already."""
    for path in sorted(folder.rglob(".*.tmp")):
        if UNWRITTEN.fullmatch(path.name) and listed.isdisjoint(path.parents) and _is_in(path, folder):
            with suppress(FileNotFoundError):  # it has its name by now
                if path.is_file() and _is_quiet(path, WRITING_S):
                    yield Removable(path, "file whose writing was cut off")


def _sized(items: Sequence[Removable]) -> list[Removable]:
    """The items with what they free; a file of several names, such as a shard of two data sets, with its last one."""
    names = Counter[tuple[int, int]]()
    sized = []
    for item in items:
        freed = 0
        with suppress(FileNotFoundError):  # somebody is at work there
            for file in (path.lstat() for path in (item.path, *item.path.rglob("*"))):
                names[file.st_dev, file.st_ino] += 1
                if names[file.st_dev, file.st_ino] == file.st_nlink and not stat.S_ISDIR(file.st_mode):
                    freed += file.st_size
        sized.append(replace(item, bytes=freed))
    return sized


def _is_in(path: Path, folder: Path) -> bool:
    """Whether the path is really in the folder: no symbolic link is on the way to it, and it is none."""
    return path.resolve() == folder.resolve() / path.relative_to(folder)


def _holds_only(folder: Path, known: re.Pattern[str]) -> bool:
    """Whether everything in the folder is of a kind that Everstep makes; else a person keeps something there."""
    return all(known.fullmatch(path.name) and not path.is_symlink() for path in folder.iterdir())


def _is_quiet(path: Path, seconds: float) -> bool:
    """Whether nothing was written there for so long; a lock is written by whoever looks at it."""
    written = [one.lstat().st_mtime for one in (path, *path.rglob("*")) if one.name != ".lock"]
    return time.time() - max(written) > seconds
