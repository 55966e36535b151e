"""What surrounds the DAG in the Snakemake process: its experiment, its lock, and what it says at the end.

A directory that a killed Snakemake left locked is unlocked by the next one; the lock of a living one is never
touched.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import shlex
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

import psutil

from workflow_lib import config, files, plan, plugins
from workflow_lib.errors import ConfigError, StateError, shortened

RECORDS = ("metadata", "incomplete", "locks", "log", "controllers", "auxiliary")  # folders that Snakemake writes to

_held: list[TextIO] = []


def settings_of(given: Sequence[str]) -> list[str]:
    """Return the settings that follow --config, as they were typed.

    What Snakemake itself makes of `set="labels={a: b}"` is YAML with its quotes lost.
    """
    entries = [entry.partition("=") for entry in given]
    if unknown := [name for name, *_ in entries if name != "set"]:
        raise ConfigError(
            f"--config {' '.join(unknown)}: the only name it takes is 'set'. "
            'A setting is overridden with --config set="training.epochs=20 seed=7"'
        )
    return [settings for *_, settings in entries]


def data_files(data: config.Data) -> dict[str, str]:
    """The person's files that a data set is made from, by setting: those of its settings that are paths."""
    return {name: str(path) for name, path in plugins.named_files("data", data.name, data.params).items()}


def files_state(data: config.Data) -> str:
    """Another text when a file of a data set is another one, also an older one, or one in its folders comes or goes.

    Snakemake itself sees of a file only whether it is newer, and of a folder whether an entry directly in it came or
    went.
    """
    states = {name: files.file_state(Path(path)) for name, path in data_files(data).items()}
    for path in (entry[0] for entries in states.values() for entry in entries if isinstance(entry, list)):
        if not _is_utf8(path):
            raise ConfigError(f"{path!r}: its name is not UTF-8; rename it")
    return config.digest(states, "everstep-files")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_named_files(sections: Iterable[config.Data | config.Model], where: str = "") -> None:
    """Every file that the data sets and models are given is there; else a ConfigError names the first that is not."""
    for one in {config.canonical([one.name, one.params]): one for one in sections}.values():
        kind, key = ("data", "data") if isinstance(one, config.Data) else ("models", "model")
        for name, path in plugins.named_files(kind, one.name, one.params).items():
            if kind == "data" and {"{", "}"} & {*str(path)}:
                raise ConfigError(
                    f"{where}data.params.{name}: {path}: Snakemake takes braces for wildcards; rename the file"
                )
            if not os.path.exists(path):  # noqa: PTH110 (Path.exists raises for a name that is too long)
                shown = shortened(str(path), 300)
                raise ConfigError(f"{where}{key}.params.{name}: no such file: {shown} (looked for in {Path.cwd()})")


def move_damaged(folder: Path) -> list[str]:
    """Names the damaged files of the study and of the data in an experiment's results; they are moved aside.

    So the pipeline makes them again.
    """
    told = []
    for path in sorted([*folder.glob("tune/*/*.json"), *folder.glob("data/*.json")]):
        try:
            files.read_json(path)
        except StateError:
            aside = path.rename(path.with_name(f".{path.name}.damaged-{uuid.uuid4().hex[:8]}"))
            told.append(f"{path} is damaged: it is made again (the damaged file is now {aside})")
    return told


def models(experiment: config.Experiment, runs: Iterable[plan.Run]) -> list[config.Model]:
    """The models of the experiment, of its runs, and of its study."""
    return [experiment.model, *(run.config.model for run in runs), *(run.model for run in plan.studied(experiment))]


def check_records(folder: Path) -> None:
    """Raise StateError where Snakemake could not use its own folder: it would show a traceback."""
    cure = (
        f"Nothing was changed. If no Snakemake works here, move {folder} away and run the same command again: no "
        f"result, no checkpoint and no data lies in it"
    )
    for place in (folder, *(folder / name for name in RECORDS)):
        try:
            with suppress(FileNotFoundError), tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE):
                raise
            raise StateError(f"Snakemake cannot write to {place}: {error.strerror}. {cure}") from error
    for path in folder.glob("metadata/**/*"):
        try:
            if not (path.name.startswith("@") and path.is_dir()):  # the beginnings of long names are folders
                path.read_bytes().decode()
        except FileNotFoundError:
            continue  # another Snakemake works here
        except (OSError, UnicodeDecodeError) as error:
            raise StateError(f"{path}, a record of Snakemake, cannot be read: {error}. {cure}") from error


def enter(folder: Path) -> list[str]:
    """The killed Snakemakes (host and pid) whose lock on the directory is removed now.

    Each one holds a file in `controllers/` under an exclusive flock for as long as it lives, which the kernel
    lets go however it dies. A file of another host, or one still held, keeps every lock where it is.
    """
    controllers = folder / "controllers"
    controllers.mkdir(parents=True, exist_ok=True)
    own = controllers / f"{uuid.uuid4().hex}.held"
    _hold(own)  # first: of two that begin together, at least one sees the other
    others = [path for path in controllers.glob("*.held") if path != own]
    if not others or not all(_is_dead(path) for path in others):
        return []
    shutil.rmtree(folder / "locks", ignore_errors=True)
    killed = [path.read_text() for path in others if path.exists()]
    for path in others:
        path.unlink(missing_ok=True)
    return killed


def refusal(folder: Path) -> str:
    """Return who works on the files that this Snakemake found locked, and what to do."""
    own = {Path(file.name).with_suffix(".held").name for file in _held}
    others = [path for path in sorted(folder.glob("controllers/*.held")) if path.name not in own]
    living = [path.read_text() for path in others if not _is_dead(path)]
    here = f"{socket.gethostname()} "
    processes = [_described(int(text.split()[1])) for text in living if text.startswith(here)]
    elsewhere = [" (pid ".join(text.split()) + ")" for text in living if not text.startswith(here)]
    if processes:
        return (
            f"another Snakemake works on the same files in {folder.absolute().parent}: {', '.join(processes)}. Nothing "
            f"was changed. Let it finish, or stop it with SIGTERM (trainings save), and run the same command again"
        )
    hosts = f" by a Snakemake on {', '.join(elsewhere)}, which cannot be looked up from here" if elsewhere else ""
    return (
        f"the files are locked in {folder.absolute()}/locks{hosts}. Nothing was changed. If no Snakemake works here "
        f"any more, delete {folder}/controllers and {folder}/locks, and run the same command again"
    )


def _described(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        since = datetime.fromtimestamp(process.create_time()).strftime("%Y-%m-%d %H:%M")
        return f"pid {pid}, since {since}: {shortened(shlex.join(process.cmdline()), 200)}"
    except psutil.Error:  # it ended in this moment, or is in a container
        return f"pid {pid}"


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
    with suppress(OSError):  # a disk without such locks: nobody's lock is removed there
        fcntl.flock(file, fcntl.LOCK_EX)
    file.write(f"{socket.gethostname()} {os.getpid()}")
    file.flush()
    new.rename(path)
    _held.append(file)
    atexit.register(path.unlink, missing_ok=True)


def _is_dead(path: Path) -> bool:
    try:
        with path.open() as file:
            if file.read().partition(" ")[0] not in (socket.gethostname(), ""):  # empty: power failed as it was written
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass  # it ended in this moment, in peace
    except OSError:  # it is held, or the disk knows no such locks
        return False
    return True
