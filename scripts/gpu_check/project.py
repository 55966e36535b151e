"""A folder in which the commands of the package are run as a user runs them, and what a check has to say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from workflow_lib.runtime.ghosts import die_with

ROOT = Path(__file__).resolve().parents[2]
DIGITS = "digits"  # real data that comes inside scikit-learn: nothing is downloaded
SHOWN_LINES = 8


class Failed(Exception):
    """The check failed; the message is its line in the table."""


class Skipped(Exception):
    """The check cannot be made on this machine; the message says why."""


@dataclass(frozen=True)
class Machine:
    """What the checks run on, as far as they have to know."""

    device: str  # of a training: "cuda:0" or "cpu"
    gpus: int

    @property
    def has_gpu(self) -> bool:
        """False in the rehearsal on the CPU."""
        return self.device != "cpu"

    @property
    def every_device(self) -> str:
        """The setting by which each rank has a device of its own."""
        return "cuda" if self.has_gpu else "cpu"


@dataclass(frozen=True)
class Check:
    """A check: its function returns the figures for the table, or raises Failed or Skipped."""

    name: str
    about: str
    run: Callable[[Machine, Path], str]
    limit_s: float = 200.0
    is_alone: bool = False  # its figures, or its memory, need the whole machine
    gpus: int = 1
    needs_gpu: bool = False  # the rehearsal on the CPU leaves it out


class Project:
    """A folder with an experiment; the package is that of this clone."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], **modules: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "Snakefile").touch()
        self.experiment = folder / "experiment.yaml"
        self.experiment.write_text(yaml.safe_dump({"name": "check", **settings}))
        for name, text in modules.items():
            (folder / "mine").mkdir(exist_ok=True)
            (folder / "mine" / f"{name}.py").write_text(text)

    def command(self, *words: str, faults: str | None = None) -> list[str]:
        """The command line of a verb of the package; ``faults`` is code that the process runs first."""
        if faults is None:
            return [sys.executable, "-m", "workflow_lib", *words]
        code = f"{faults}\nimport runpy, sys\nrunpy.run_module('workflow_lib', run_name='__main__', alter_sys=True)"
        return [sys.executable, "-c", code, *words]

    def environment(self, changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
        """The variables of a command; None in ``changes`` unsets a variable."""
        paths = [str(ROOT), str(self.folder), os.environ.get("PYTHONPATH", "")]
        variables: dict[str, str | None] = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "EVERSTEP_EXPERIMENT": str(self.experiment),
            **(changes or {}),
        }
        return {name: value for name, value in variables.items() if value is not None}

    def start(
        self, *words: str, faults: str | None = None, changes: Mapping[str, str | None] | None = None
    ) -> subprocess.Popen[str]:
        """The verb runs in the background; what it says goes to the file ``said``."""
        with self.said.open("a") as file:
            return subprocess.Popen(
                self.command(*words, faults=faults),
                cwd=self.folder,
                env=self.environment(changes),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                preexec_fn=partial(die_with, os.getpid()),  # a check that is ended leaves nothing behind
            )

    def run(self, *words: str, expect: int = 0, **options: Any) -> str:
        """What the verb said; Failed if it ended with another code than ``expect``."""
        before = len(self.text)
        code = self.start(*words, **options).wait()
        said = self.text[before:]
        if code != expect:
            raise Failed(f"{words[0]} ended with {code} instead of {expect}: {tail(said)}")
        return said

    @property
    def said(self) -> Path:
        """The file with all that the commands said."""
        return self.folder / "said.txt"

    @property
    def text(self) -> str:
        """All that the commands said so far."""
        return self.said.read_text(errors="replace") if self.said.exists() else ""

    def prepare(self) -> None:
        """The run is frozen and its data are there: trainings can begin."""
        self.run("freeze", "--output", "plan.json")
        plan = json.loads((self.folder / "plan.json").read_text())
        run = plan["runs"][0]
        self.run_id, self.data_id = run["id"], run["data_id"]
        self.run("preprocess", "--data", self.data_id, "--output", "data.json")

    def train_words(self, output: str = "run/train.json") -> tuple[str, ...]:
        """The command that trains the run."""
        return ("train", "--run", self.run_id, "--data", "data.json", "--output", output)

    def wait_for(self, path: Path, process: subprocess.Popen[str], limit_s: float = 120.0) -> None:
        """The file is there; Failed if the process ends first."""
        deadline = time.monotonic() + limit_s
        while not path.exists():
            if process.poll() is not None:
                raise Failed(f"ended with {process.returncode} before {path.name} was there: {tail(self.text)}")
            if time.monotonic() > deadline:
                raise Failed(f"{path.name} was not there after {limit_s:.0f} s: {tail(self.text)}")
            time.sleep(0.02)


def prove(project: Project, kills: int = 3, **options: Any) -> str:
    """The figures of an exact resume; Failed if it is not exact."""
    begun = time.monotonic()
    said = project.run("prove-resume", project.experiment.name, "--kills", str(kills), **options)
    found = re.search(r"exact: (\d+) steps, (\d+) kills, (\d+) attempts", said)
    if found is None:
        raise Failed(f"no verdict: {tail(said)}")
    steps, struck, attempts = found.groups()
    return f"exact: {steps} steps, {struck} kills, {attempts} attempts, {time.monotonic() - begun:.0f} s"


def tail(text: str, lines: int = SHOWN_LINES) -> str:
    """The end of what was said."""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def kill_tree(pid: int) -> None:
    """The process and all its descendants, in whatever session, are killed."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)
