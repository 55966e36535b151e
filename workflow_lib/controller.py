"""What surrounds the DAG in the Snakemake process: its experiment, its lock, and what it says at the end.

A directory that a killed Snakemake left locked is unlocked by the next one; the lock of a living one is never
touched.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shlex
import shutil
import socket
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from workflow_lib import config, plugins
from workflow_lib.errors import ConfigError, shortened

_held: list[TextIO] = []


def load_experiment(files: Sequence[Path], given: Sequence[str]) -> config.Experiment:
    """The validated experiment of a command line; `given` is what follows --config, as it was typed.

    What Snakemake itself makes of `set="labels={a: b}"` is YAML with its quotes lost.
    """
    entries = [entry.partition("=") for entry in given]
    if unknown := [name for name, *_ in entries if name != "set"]:
        raise ConfigError(
            f"--config {' '.join(unknown)}: the only name it takes is 'set'. "
            'A setting is overridden with --config set="training.epochs=20 seed=7"'
        )
    return config.load(files, [settings for *_, settings in entries])


def data_files(data: config.Data) -> dict[str, str]:
    """The person's files that a data set is made from, by setting: those of its settings that are paths."""
    params = plugins.load("data", data.name).Params.model_validate(data.params)
    return {name: str(value) for name, value in params if isinstance(value, Path)}


def folders_state(data: config.Data) -> str:
    """Another text when a file is added to the folders of a data set, removed from them, or written.

    Snakemake itself sees of a folder only whether an entry directly in it came or went. Hidden files do not count.
    """
    files = [
        Path(folder, name)
        for path in data_files(data).values()
        for folder, _, names in os.walk(path)
        for name in names
        if not name.startswith(".")
    ]
    states = [(path.lstat(), path) for path in sorted(files)]
    return config.digest([[str(path), state.st_size, state.st_mtime_ns] for state, path in states], "everstep-folders")


def refuse_missing_files(data: Iterable[config.Data], where: str = "") -> None:
    """Every file that the data sets are made from is there; else a ConfigError names the first that is not."""
    for one in data:
        for name, path in data_files(one).items():
            if "{" in path or "}" in path:
                raise ConfigError(
                    f"{where}data.params.{name}: {path}: Snakemake takes braces for wildcards; rename the file"
                )
            if not os.path.exists(path):  # False also for a name that no file can have
                raise ConfigError(
                    f"{where}data.params.{name}: no such file: {shortened(path, 300)} (looked for in {Path.cwd()})"
                )


def enter(folder: Path) -> list[str]:
    """The killed Snakemakes (host and pid) whose lock on the directory is removed now.

    Each one holds a file in `controllers/` under an exclusive flock for as long as it lives, which the kernel
    lets go however it dies. A file of another host, or one still held, keeps every lock where it is.
    """
    controllers = folder / "controllers"
    controllers.mkdir(parents=True, exist_ok=True)
    others = list(controllers.glob("*.held"))
    _hold(controllers / f"{uuid.uuid4().hex}.held")
    if not others or not all(_is_dead(path) for path in others):
        return []
    shutil.rmtree(folder / "locks", ignore_errors=True)
    killed = [path.read_text() for path in others if path.exists()]
    for path in others:
        path.unlink(missing_ok=True)
    return killed


def failures(jobs: Iterable[tuple[str, Path | None]], command: Sequence[str]) -> str:
    """For each failed job (its name, its log) the last line it wrote, then the command that goes on."""
    told = []
    for name, log in jobs:
        text = log.read_text(errors="replace") if log and log.exists() else ""
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "it left no message")
        told.append(f"everstep: {name} failed: {last}\n    log: {log}")
    mend = "Mend the cause. " if told else ""  # a Snakemake that was told to stop has no failed job
    return "\n".join([*told, f"everstep: nothing that was done is lost. {mend}To go on: {shlex.join(command)}"])


def _hold(path: Path) -> None:
    """The file exists, and is under this process's lock from the moment it has its name."""
    new = path.with_suffix(".new")
    file = new.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(f"{socket.gethostname()} {os.getpid()}")
    file.flush()
    new.rename(path)
    _held.append(file)
    atexit.register(path.unlink, missing_ok=True)


def _is_dead(path: Path) -> bool:
    try:
        with path.open() as file:
            if file.read().split()[0] != socket.gethostname():
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass  # it ended in this moment, in peace
    return True
