"""Frozen runs: what a digest names never changes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import ValidationError

from workflow_lib import files
from workflow_lib.config.run import RunConfig
from workflow_lib.errors import ConfigError, StateError
from workflow_lib.plan.runs import run_digest


def freeze(run: RunConfig, work: Path, name: str | None = None) -> Path:
    """The file work/runs/<digest>/config.json holds the run; a file already there is only checked.

    It is not forced to the disk: one that a power loss took, or left torn, is frozen again by the next plan, and of
    ten thousand runs each would wait for the disk twice.
    """
    name = name or run_digest(run)
    path = work / "runs" / name / "config.json"
    text = files.json_text(run.model_dump(mode="json"))
    try:
        there = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        there = ""
    if there != text:
        if _is_torn(there):
            files.write_atomic(path, text, durable=False)
        else:
            read_run(path, name)
    return path


def _is_torn(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return True
    return False


def load_run(ref: str, work: Path) -> tuple[RunConfig, str]:
    """The frozen run and its digest; `ref` is an id, a digest, its first 12 digits or more, or a pointer file."""
    path = _frozen(ref, work)
    return read_run(path, path.parent.name), path.parent.name


def _frozen(ref: str, work: Path) -> Path:
    match = re.search(r"(?:^|-)([0-9a-f]{12,32})$", _pointed(ref) if ref.endswith(".json") else ref)
    if not match:
        raise ConfigError(f"{ref!r} is not a run: give its id, its digest, or a JSON file that points to it")
    whole = work / "runs" / match[1] / "config.json"
    if whole.exists():  # a whole digest: not looked for among all runs
        return whole
    found = sorted((work / "runs").glob(f"{match[1]}*/config.json"))
    if len(found) > 1:
        raise ConfigError(f"{ref}: {len(found)} runs in {work / 'runs'} begin like this; give more of the digest")
    if not found:
        raise ConfigError(
            f"{ref}: no such run in {work / 'runs'}; the pipeline's plan freezes the runs of an experiment"
        )
    return found[0]


def _pointed(ref: str) -> str:
    """The digest in a JSON file such as best.json."""
    try:
        return str(files.read_json(Path(ref), "run")["run"]["digest"])
    except OSError as error:
        raise ConfigError(f"{ref}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{ref}: does not point to a run; a file such as best.json holds run.digest") from error


def read_run(path: Path, name: str) -> RunConfig:
    try:
        run = RunConfig.model_validate(files.read_json(path))
    except StateError as error:
        raise ConfigError(str(error)) from error
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ConfigError(
            f"{path}: not the settings of a run, or of another version: {reason}. {files.REMAKE}"
        ) from error
    if run_digest(run) != name:
        raise ConfigError(
            f"{path}: not what was frozen under this name; move {path.parent} away and run the plan again"
        )
    return run
