"""Frozen experiments and runs in `work/`: files named by a digest, whose content never changes.

Queued jobs read them, so that an edit of the experiment file does not affect jobs that were planned before.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from pydantic import ValidationError

from workflow_lib import config, files
from workflow_lib.config.experiment import Experiment
from workflow_lib.config.identity import stored
from workflow_lib.config.renamed import with_current_names, with_stored_names
from workflow_lib.config.run import RunConfig
from workflow_lib.errors import ConfigError, StateError
from workflow_lib.plan.naming import run_digest
from workflow_lib.store import layout

logger = logging.getLogger(__name__)


def freeze_experiment(experiment: Experiment, work: Path) -> Path:
    """Write work/experiments/<digest>.json with every setting, and return its path; `config.load` reads it back."""
    values = with_stored_names(stored(experiment))
    path = layout.experiment_file(work, config.digest(values, "experiment"))
    text = files.json_text(values)
    if not path.exists() or path.read_bytes() != text.encode():
        if path.exists():
            logger.warning("%s was damaged, and is written again", path)
        files.write_atomic(path, text)
    return path


def freeze(run: RunConfig, work: Path, digest: str | None = None) -> Path:
    """Write work/runs/<digest>/config.json with the run, and return its path; an existing file is only checked.

    The file is not synced to disk, because a sweep of ten thousand runs would wait for the disk twice for each. If a
    power loss removes or truncates the file, the next plan writes it again.
    """
    digest = digest or run_digest(run)
    path = layout.run_config(work, digest)
    text = files.json_text(with_stored_names(stored(run)))
    try:
        present = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        present = ""
    if present != text:
        if _is_truncated(present):
            files.write_atomic(path, text, durable=False)
        else:
            read_run(path, digest)
    return path


def _is_truncated(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return True
    return False


def load_run(ref: str, work: Path) -> tuple[RunConfig, str]:
    """Return the frozen run and its digest.

    Raises ConfigError if `ref`, as in `run_path`, names no run, or several.
    """
    path = run_path(ref, work)
    return read_run(path, path.parent.name), path.parent.name


def run_path(ref: str, work: Path) -> Path:
    """Return the path of a frozen run.

    `ref` is an id, a digest, its first 12 digits or more, or a JSON file such as best.json. Raises ConfigError if it
    names no run, or several.
    """
    match = re.search(r"(?:^|-)([0-9a-f]{12,32})$", _pointed(ref) if ref.endswith(".json") else ref)
    if not match:
        raise ConfigError(f"{ref!r} is not a run: give its id, its digest, or a JSON file that points to it")
    exact = layout.run_config(work, match[1])
    if exact.exists():  # a whole digest needs no scan of all runs
        return exact
    found = layout.run_configs(work, match[1])
    if len(found) > 1:
        raise ConfigError(f"{ref}: {len(found)} runs in {layout.runs_dir(work)} start with this; give more digits")
    if not found:
        raise ConfigError(
            f"{ref}: no such run in {layout.runs_dir(work)}, where the pipeline keeps the settings: run it again"
        )
    return found[0]


def _pointed(ref: str) -> str:
    """Return the digest in a JSON file such as best.json."""
    try:
        return str(files.read_json(Path(ref), "run")["run"]["digest"])
    except OSError as error:
        raise ConfigError(f"{ref}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{ref}: does not point to a run; a file such as best.json holds run.digest") from error


def read_run(path: Path, digest: str) -> RunConfig:
    """Return the run in the file; raise ConfigError if it has another digest."""
    try:
        run = RunConfig.model_validate(with_current_names(files.read_json(path)))
    except StateError as error:
        raise ConfigError(str(error)) from error
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ConfigError(
            f"{path}: not the settings of a run, or of another version: {reason}. {files.REMAKE}"
        ) from error
    if run_digest(run) != digest:
        raise ConfigError(
            f"{path}: not the run that was frozen under this name; move {path.parent} away and run the plan again"
        )
    return run
