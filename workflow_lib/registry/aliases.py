"""Aliases: which version has one, and every decision about it.

    <registry>/<name>/aliases/<alias>/000004.json     a decision, and the version that has the alias since then

Decisions are numbered and never changed; the last one is the current state. A decision is made about a state, and gets
the next number by `link`, which fails if another process has decided meanwhile: then it is made again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workflow_lib.errors import StateError
from workflow_lib.files import fsync_dir, names_in, read_json, temporary_name, write_signed
from workflow_lib.registry import versions
from workflow_lib.registry.versions import Version

Decision = dict[str, Any]


def aliases_dir(registry: Path, name: str) -> Path:
    return registry / name / "aliases"


def aliases(registry: Path, name: str) -> list[str]:
    """Return the aliases of a model, sorted."""
    return names_in(aliases_dir(registry, name))


def decisions(registry: Path, name: str, alias: str) -> list[Decision]:
    """Return all decisions about an alias, oldest first. Raises StateError if one is damaged."""
    folder = aliases_dir(registry, name) / alias
    return [_read(_path(folder, number)) for number in _numbers(folder)]


def _read(path: Path) -> Decision:
    try:
        decision: Decision = read_json(path, "version", "holder")
    except StateError as error:
        raise StateError(
            f"{path} is damaged. Restore it from a copy: without it an earlier version has the alias"
        ) from error
    return decision


def _numbers(folder: Path) -> list[int]:
    return sorted(int(name[:-5]) for name in names_in(folder) if name.endswith(".json") and name[:-5].isdecimal())


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def holder(registry: Path, name: str, history: list[Decision]) -> Version | None:
    """Return the version that has the alias, or None. Raises StateError if it is gone or another one has its number."""
    current = history[-1]["holder"] if history else None
    if current is None:
        return None
    found = versions.load(registry, name, current["number"])
    if found.digest != current["digest"]:
        raise StateError(f"{found.folder} is not the version that got the alias: its digest is another. Restore it")
    return found


def decide(
    registry: Path, name: str, alias: str, choose: Callable[[list[Decision], Version | None], tuple[Decision, bool]]
) -> Decision:
    """Return the decision that `choose` makes about the history and the holder; record it if `choose` says so."""
    folder = aliases_dir(registry, name) / alias
    versions.make_shared_dirs(registry, folder)
    versions.remove_leftovers(folder)
    while True:
        number = 1 + max(_numbers(folder), default=0)  # before the history is read: a later decision takes it
        history = decisions(registry, name, alias)
        made, is_new = choose(history, holder(registry, name, history))
        if not is_new or _append(registry, _path(folder, number), made):
            return made


def _append(registry: Path, path: Path, decision: Decision) -> bool:
    """Write the numbered file; return False if another process has taken the number."""
    temporary = temporary_name(path)
    try:
        write_signed(temporary, decision)
        versions.share(registry, temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # NFS may report a failure although the link was created; the link count is reliable
            return temporary.stat().st_nlink == 2
        fsync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return True
