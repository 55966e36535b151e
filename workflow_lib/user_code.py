"""The code and the files of a person that a run is trained with: its model, its hooks, and what their settings name.

A run's workspace is named by their digest beside that of the data: other code is another training. What a run was
trained with is kept in its workspace, so that `everstep explain` can show the lines that differ. A person may accept a
finished result for changed code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workflow_lib import config, files, plugins, source_digest
from workflow_lib.errors import ConfigError
from workflow_lib.plan import RunConfig

Kept = dict[str, Any]
WORKSPACE = re.compile(r"[0-9a-f]{12}(-[0-9a-f]{12})?")  # the data, the code; workspaces of version 0.1 have no code


def of(run: RunConfig) -> dict[str, source_digest.Code]:
    """The code of the run: that of its model, and that of its hooks where it has some."""
    modules = {"model": plugins.load("models", run.model.name)}
    if run.training.hooks is not None:
        modules["hooks"] = plugins.load_hooks(run.training.hooks)
    return {kind: plugins.code(module) for kind, module in modules.items()}


def files_of(run: RunConfig) -> dict[str, Path]:
    """The files that the settings of the run's model name, by setting."""
    return plugins.named_files("models", run.model.name, run.model.params)


def digest(run: RunConfig) -> str:
    """The digest of the run's code, and of the content of the files that its model is given: 32 hex digits."""
    return _digest(of(run), {name: content_digest(path) for name, path in files_of(run).items()})


def _digest(code: dict[str, source_digest.Code], named: dict[str, str]) -> str:
    return config.digest({"code": {kind: one.digest for kind, one in code.items()}, "files": named}, "code")


def state(run: RunConfig) -> str:
    """A text that changes with the digest, at the cost of a look at each file."""
    named = {name: files.file_state(path) for name, path in files_of(run).items()}
    return config.digest([{kind: one.digest for kind, one in of(run).items()}, named], "code")


def memo(digest: Callable[[RunConfig], str] = digest) -> Callable[[RunConfig], str]:
    """The function, which looks once at each model and its hooks, for many runs."""
    known: dict[str, str] = {}

    def of_run(run: RunConfig) -> str:
        key = config.canonical([run.model.name, run.model.params, run.training.hooks])
        if key not in known:
            known[key] = digest(run)
        return known[key]

    return of_run


def content_digest(path: Path) -> str:
    """The digest of a file's bytes, or of all files in a folder with their names; hidden ones do not count."""
    if path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if file.is_file() and not is_hidden(file.relative_to(path))]
        return config.digest([[str(file.relative_to(path)), files.file_digest(file)] for file in inside], "folder")
    return files.file_digest(path)


def is_hidden(path: Path) -> bool:
    """Return True if the file, or a folder on the way to it, has a name that begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def workspace_of(work: Path, run: str, data: str, code: str) -> Path:
    """Where the run of that digest keeps its state: other data or other code is another training."""
    return work / "runs" / run / f"{data[:12]}-{code[:12]}"


def keep(workspace: Path, run: RunConfig, expected: str) -> None:
    """The workspace holds the texts of the code with that digest, which it is trained with, and those of the files."""
    now = as_kept(run)
    if now["digest"] != expected:
        raise ConfigError("the code of the run changed while its training began: run the same command again")
    if not (workspace / "code.json").exists():
        files.write_json(workspace / "code.json", now)


def as_kept(run: RunConfig) -> Kept:
    """The code of the run as it is now, in the form in which it is kept."""
    code, named = of(run), {name: content_digest(path) for name, path in files_of(run).items()}
    texts = {kind: {"digest": one.digest, "texts": one.texts} for kind, one in code.items()}
    return {"digest": _digest(code, named), "code": texts, "files": named}


def kept(workspace: Path) -> Kept | None:
    """Return what `keep` wrote; None without it, as in workspaces of version 0.1."""
    path = workspace / "code.json"
    return files.read_json(path, "digest", "code", "files") if path.exists() else None


def workspaces(work: Path, run: str, data: str = "") -> list[Path]:
    """The workspaces of the run of that digest, with any code; those for that data where it is given."""
    found = (work / "runs" / run).glob(f"{data[:12]}*")
    return sorted(path for path in found if WORKSPACE.fullmatch(path.name) and path.is_dir())


def acceptance_file(workspace: Path) -> Path:
    """The record that a person accepts the result of another workspace in place of this one's."""
    return workspace.with_name(f"{workspace.name}.accepted.json")


def accepted(workspace: Path) -> dict[str, Any] | None:
    """The record of `everstep accept` for this workspace, whose `workspace` names the one that stands in for it."""
    path = acceptance_file(workspace)
    if not path.exists():
        return None
    record: dict[str, Any] = files.read_json(path, "workspace", "code", "trained_with", "by", "time")
    return record
