"""A project folder in which checks run the commands as a user does, and the types of checks."""

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

from workflow_lib.store.orphans import exit_with_parent

ROOT = Path(__file__).resolve().parents[2]
DIGITS = "digits"  # real data that scikit-learn contains: nothing is downloaded
SHOWN_LINES = 8
BF16_CAPABILITY = 8.0


class Failed(Exception):
    """The check failed; the message is its line in the table."""


class Skipped(Exception):
    """The check cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Machine:
    """The machine that the checks run on."""

    device: str  # of a training: "cuda:0" or "cpu"
    gpus: int
    capability: float = 0.0  # the least of the GPUs, as 9.0

    @property
    def has_gpu(self) -> bool:
        """False with --cpu."""
        return self.device != "cpu"

    @property
    def every_device(self) -> str:
        """The value of runtime.device that gives each rank its own device."""
        return "cuda" if self.has_gpu else "cpu"


@dataclass(frozen=True)
class Check:
    """A check: its function returns the figures for the table, or raises Failed or Skipped."""

    name: str
    about: str
    run: Callable[[Machine, Path], str]
    limit_s: float = 200.0
    is_alone: bool = False  # its figures, or its memory, need the whole machine
    is_first: bool = False  # what it shows is needed most, if the time is not enough for all
    gpus: int = 1
    needs_gpu: bool = False  # skipped with --cpu


def need_bf16(machine: Machine) -> None:
    """Raise Skipped on GPUs that are too old for bf16."""
    if machine.has_gpu and machine.capability < BF16_CAPABILITY:
        raise Skipped(f"bf16 needs compute capability {BF16_CAPABILITY}; here is {machine.capability}")


class Project:
    """A folder with an experiment, which uses the package of this clone."""

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
        """Start the verb in the background; its output goes to the file ``said``."""
        with self.said.open("a") as file:
            return subprocess.Popen(
                self.command(*words, faults=faults),
                cwd=self.folder,
                env=self.environment(changes),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                preexec_fn=partial(exit_with_parent, os.getpid()),  # a check that is killed leaves no process
            )

    def run(self, *words: str, expect: int = 0, **options: Any) -> str:
        """Run the verb and return its output; raise Failed if its exit code is not ``expect``."""
        before = len(self.text)
        code = self.start(*words, **options).wait()
        said = self.text[before:]
        if code != expect:
            raise Failed(f"{words[0]} ended with {code} instead of {expect}: {tail(said)}")
        return said

    @property
    def said(self) -> Path:
        """The file with the output of all commands."""
        return self.folder / "said.txt"

    @property
    def text(self) -> str:
        """The output of all commands so far."""
        return self.said.read_text(errors="replace") if self.said.exists() else ""

    def prepare(self) -> None:
        """Freeze the run and prepare its data, so that trainings can start."""
        self.run("freeze", "--output", "plan.json")
        plan = json.loads((self.folder / "plan.json").read_text())
        run = plan["runs"][0]
        self.run_id, self.data_id = run["id"], run["data_id"]
        self.run("preprocess", "--data", self.data_id, "--output", "data.json")

    def train_words(self, output: str = "run/train.json") -> tuple[str, ...]:
        """The command that trains the run."""
        return ("train", "--run", self.run_id, "--data", "data.json", "--output", output)

    def wait_for(self, path: Path, process: subprocess.Popen[str], limit_s: float = 120.0) -> None:
        """Wait for the file; raise Failed if the process ends first, or after the limit."""
        deadline = time.monotonic() + limit_s
        while not path.exists():
            if process.poll() is not None:
                raise Failed(f"ended with {process.returncode} before {path.name} was there: {tail(self.text)}")
            if time.monotonic() > deadline:
                raise Failed(f"{path.name} was not there after {limit_s:.0f} s: {tail(self.text)}")
            time.sleep(0.02)


def prove(project: Project, kills: int = 3, **options: Any) -> str:
    """Run prove-resume and return its figures; raise Failed if the resume is not exact."""
    begun = time.monotonic()
    said = project.run("prove-resume", project.experiment.name, "--kills", str(kills), **options)
    found = re.search(r"exact: (\d+ steps, \d+ kills.*?, \d+ attempts);", said)
    if found is None:
        raise Failed(f"no verdict: {tail(said)}")
    return f"exact: {found[1]}, {time.monotonic() - begun:.0f} s"


def tail(text: str, lines: int = SHOWN_LINES) -> str:
    """Return the last non-empty lines of the text."""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def kill_tree(pid: int) -> None:
    """Kill the process and all its descendants, in any session."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)
