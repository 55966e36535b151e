"""Snapshots of the project's code in `work/code/`: jobs import what was submitted, while the user goes on editing.

A snapshot is a view of the project's folder. The packages and modules of the user's code, and in a clone those of this
library and its rules, are copies; everything else is a link to the project, so that paths which code derives from
`__file__` stay valid. It is named by the digest of the copies, and published by one rename.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow_lib import config, files, shipped
from workflow_lib.errors import ConfigError
from workflow_lib.plugins import source_digest
from workflow_lib.processes import writer_mark
from workflow_lib.runtime import git
from workflow_lib.store import layout

COPIED_BYTES = 2**20  # a larger file is a link, unless it is Python code
FOLDER_ENTRIES = 1000  # a folder with more entries is data, and a link as a whole
MOST_FILES, MOST_BYTES = 10_000, 100 * 2**20
WORKFLOW = ("Snakefile", "rules", "workflow")  # where a project has its rules
LIBRARY = ("workflow_lib", "report")  # the other files of this library in a clone
SUBMITTED = "EVERSTEP_SNAPSHOT"  # variable: the snapshot that a pipeline in a job of its own was submitted with
NOT_LINKED = {".git", "__pycache__"}
SAFE_PATH = "everstep"  # value of PYTHONSAFEPATH that says who set it


@dataclass
class Contents:
    """Files to copy, by their path in the project; packages and modules (`tops`), and folders of the import path."""

    files: dict[str, bytes] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)  # inside of packages
    tops: set[str] = field(default_factory=set)
    roots: set[str] = field(default_factory=set)
    bytes: int = 0


def publish(modules: Mapping[str, Path], project: Path, work: Path, more: Iterable[Path] = ()) -> Path | None:
    """Write the snapshot of the project's rules and of the code that these modules, by name, belong to.

    `more` are other files and folders to copy. Returns the folder, or None if there is nothing to copy. Modules outside
    of the project's folder, and installed ones, are not part of it. Raises ConfigError if the folders of the code
    contain too many files to be copied.
    """
    contents = _contents(modules, project)
    for path in more:
        if path.is_relative_to(project) and not _is_copied(contents, path.relative_to(project)):
            _add_top(contents, path, project)
    if not contents.tops:
        return None
    about = {
        "project": str(project),
        "roots": sorted(contents.roots),
        "commit": git.commit(project),
        "modified": git.is_modified(project),
    }
    # ascii(), since a file may have a name that is not UTF-8
    named = {ascii(name): files.blake2b(content).hexdigest() for name, content in contents.files.items()}
    others = [sorted(map(ascii, names)) for names in (contents.links, contents.tops)]
    digest = config.digest([about, named, others], "code-snapshot")
    folder = layout.code_snapshot(work, digest)
    if not _is_whole(folder, contents):
        _replace(folder, contents, about)
    _link_rest(folder, contents, project, work)
    os.utime(layout.code_snapshot_record(folder))
    return folder.absolute()


def _contents(modules: Mapping[str, Path], project: Path) -> Contents:
    contents = Contents()
    for name, path in modules.items():
        if _root(name, path, project) is not None:
            for inner, file in source_digest.files_of(name, path).items():
                _add_module(contents, inner, file, project)
    is_clone = shipped.FOLDER.resolve() == project
    for name in WORKFLOW + (LIBRARY if is_clone else ()):
        _add_top(contents, project / name, project)
    if is_clone:
        contents.roots.add("")
    return contents


def _is_copied(contents: Contents, path: Path) -> bool:
    return not contents.tops.isdisjoint(map(str, (path, *path.parents)))


def _root(name: str, file: Path, project: Path) -> Path | None:
    """Return the folder where a module's import path begins; None for one outside of the project, or installed."""
    found = file.absolute().parents[name.count(".") + (file.name == "__init__.py")]
    root = next((path for path in (found, found.resolve()) if path.is_relative_to(project)), None)
    if root is None or not source_digest.INSTALLED.isdisjoint(root.relative_to(project).parts):
        return None
    return root


def _add_module(contents: Contents, name: str, file: Path, project: Path) -> None:
    """Add the package that a module belongs to, or its only file, and the folder in which its import path begins."""
    if (root := _root(name, file, project)) is None:
        return
    contents.roots |= {"", "" if root == project else str(root.relative_to(project))}
    is_alone = "." not in name and file.name != "__init__.py"
    _add_top(contents, root / (file.name if is_alone else name.partition(".")[0]), project)


def _add_top(contents: Contents, path: Path, project: Path) -> None:
    name = str(path.relative_to(project))
    if name not in contents.tops and path.exists():
        contents.tops.add(name)
        _add(contents, path, name, ())


def _add(contents: Contents, path: Path, name: str, parents: tuple[tuple[int, int], ...]) -> None:
    """Add a file, or a folder with everything in it; links are followed, except for those to a folder around them."""
    status = path.stat()
    own = (status.st_dev, status.st_ino)
    if path.is_dir():
        entries = sorted(path.iterdir())
        if len(entries) > FOLDER_ENTRIES or own in parents:
            if own not in parents and any(entry.suffix == ".py" for entry in entries):
                raise ConfigError(f"{name}: a folder of code has more than {FOLDER_ENTRIES} entries")
            contents.links.add(name)
            return
        for entry in entries:
            if entry.name != "__pycache__":
                with suppress(FileNotFoundError):  # a broken link, or a temporary file of an editor
                    _add(contents, entry, f"{name}/{entry.name}", (*parents, own))
    elif path.is_file():
        if (path.suffix != ".py" and status.st_size > COPIED_BYTES) or not os.access(path, os.R_OK):
            contents.links.add(name)
            return
        contents.files[name] = path.read_bytes()
        contents.modes[name] = status.st_mode & 0o777
        contents.bytes += len(contents.files[name])
        if len(contents.files) > MOST_FILES or contents.bytes > MOST_BYTES:
            limit = f"{MOST_FILES} files or {MOST_BYTES >> 20} MiB"
            raise ConfigError(f"the packages of the project's code have more than {limit}, as in {Path(name).parent}")


def _is_whole(folder: Path, contents: Contents) -> bool:
    try:
        files.read_json(layout.code_snapshot_record(folder), "roots", "commit", "modified")
        return all((folder / name).read_bytes() == content for name, content in contents.files.items())
    except files.UNREADABLE:
        return False


def _replace(folder: Path, contents: Contents, about: Mapping[str, object]) -> None:
    """Publish the copies; a damaged snapshot of the same name is moved away first."""
    mark = f"{writer_mark()}{uuid.uuid4().hex[:12]}"
    temporary = folder.with_name(f".tmp-{mark}")
    try:
        for name, content in contents.files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
            # read-only, so that nobody edits a copy that a traceback names
            (temporary / name).chmod(contents.modes[name] & 0o555 | 0o400)
        layout.code_snapshot_record(temporary).write_text(files.json_text(about), encoding="utf-8")
        if folder.exists() and not _is_whole(folder, contents):
            with suppress(FileNotFoundError):  # another Snakemake has just moved it away
                shutil.rmtree(folder.rename(folder.with_name(f".trash-{mark}")), ignore_errors=True)
        try:
            temporary.rename(folder)
        except OSError:
            if not _is_whole(folder, contents):  # else another Snakemake has published it meanwhile
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link_rest(folder: Path, contents: Contents, project: Path, work: Path) -> None:
    """Link everything that is not copied; links that are there stay."""
    for name in contents.links:
        _link(folder / name, project / name)
    parents = {str(parent) for top in contents.tops for parent in Path(top).parents}
    for parent in parents:
        for path in (project / parent).iterdir():
            name = str(path.relative_to(project))
            is_store = path.is_dir() and work.exists() and path.samefile(work)
            if path.name not in NOT_LINKED and name not in contents.tops | parents and not is_store:
                _link(folder / name, path)


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.symlink_to(target)


def environment(folder: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables with which a Python process, and those that it starts, import from a snapshot."""
    record = _record(folder)
    found = {git.SUBMITTED: json.dumps([record["commit"], record["modified"]])}
    if not (own := import_path(folder)):
        return found
    earlier = [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in own]
    return found | {
        "PYTHONPATH": os.pathsep.join([*own, *earlier]),
        # Python would put the current folder, the project itself, first
        "PYTHONSAFEPATH": environ.get("PYTHONSAFEPATH") or SAFE_PATH,
    }


def submitted(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the snapshot that this pipeline was submitted with, if it runs in a job of its own."""
    return Path(environ[SUBMITTED]) if SUBMITTED in environ else None


def copied(folder: Path, path: Path, project: Path) -> Path | None:
    """Return the copy of a file or folder of the project in a snapshot; None if it is a link or missing there."""
    if not path.absolute().is_relative_to(project):
        return None
    copy = folder / path.absolute().relative_to(project)
    return copy if copy.exists() and copy.resolve().is_relative_to(folder.resolve()) else None


def import_path(folder: Path) -> list[str]:
    """Return the folders of a snapshot that Python imports from. Raises ConfigError if it is gone."""
    return [str(folder / root) if root else str(folder) for root in _record(folder)["roots"]]


def _record(folder: Path) -> dict[str, Any]:
    try:
        path = layout.code_snapshot_record(folder)
        with suppress(PermissionError):
            os.utime(path)  # `everstep clean` keeps what was used within a week
        record: dict[str, Any] = files.read_json(path, "roots", "commit", "modified")
        return record
    except files.UNREADABLE as error:
        raise ConfigError(
            f"{folder}: the code that this job was submitted with is gone, or damaged: start the pipeline again"
        ) from error


def use(folder: Path) -> None:
    """Import the project's code from a snapshot, in this process and in those that it starts."""
    sys.path[:0] = import_path(folder)
    os.environ.update(environment(folder))


def let_children_find_scripts(environ: MutableMapping[str, str] = os.environ) -> None:
    """Undo the part of `environment` that would keep a Python script that user code starts from its own folder."""
    if environ.get("PYTHONSAFEPATH") == SAFE_PATH:
        del environ["PYTHONSAFEPATH"]
