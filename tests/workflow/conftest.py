"""Copies of the repository in which the tests run Snakemake, and a finished pipeline for tests to copy."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import filelock
import pytest

from tests.support.repository import copy_repository

TINY = """\
name: tiny
training:
  epochs: 2
optimizer:
  lr: 0.01
evaluate:
  bootstrap: 20
export:
  batch_sizes: [1, 2]
sweep:
  grid:
    model.params.hidden: [[8], [16]]
tune:
  trials: 2
  space:
    optimizer.lr: {type: float, low: 0.001, high: 0.1, log: true}
"""

WAIT_S = 1200.0  # limit for what takes a minute, in case the machine is busy
Job = tuple[str, str | None]


@dataclass
class Project:
    """A copy of the repository, whose pipeline can be run."""

    folder: Path
    config: str = "config/tiny.yaml"

    def write(self, text: str) -> None:
        """Write the text to the experiment file."""
        path = self.folder / self.config
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace the only occurrence of `old` in the file."""
        text = (self.folder / path).read_text()
        assert text.count(old) == 1, f"{path} has {old!r} {text.count(old)} times"
        (self.folder / path).write_text(text.replace(old, new))

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of the pipeline, as a user types it."""
        snakemake = str(Path(sys.executable).parent / "snakemake")
        config = [] if "--configfile" in arguments else ["--configfile", self.config]
        return [snakemake, *arguments, *config, "--profile", "profiles/local", "--cores", "2"]

    @contextmanager
    def running(self, *arguments: str) -> Iterator[Running]:
        """Run the pipeline in the background; kill what is left of its process group at the end of the block."""
        printed = self.folder.parent / f"{uuid.uuid4().hex}.txt"
        with printed.open("w") as output:
            process = subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                start_new_session=True,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        running = Running(process, printed)
        try:
            yield running
        finally:
            running.kill()

    def run(self, *arguments: str) -> Outcome:
        """Run the pipeline to its end and return the outcome."""
        with self.running(*arguments) as running:
            return running.outcome()

    def make(self, *arguments: str) -> Outcome:
        """Run the pipeline, which must succeed, and return the outcome."""
        outcome = self.run(*arguments)
        assert outcome.code == 0, outcome.output
        return outcome

    def plan(self, *arguments: str) -> set[Job]:
        """Return the jobs that Snakemake would run: (rule, run), without `all`."""
        return self.make("--dry-run", *arguments).jobs

    def everstep(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run an `everstep` command in the folder and return the finished process."""
        command = [sys.executable, "-m", "workflow_lib", *arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=WAIT_S)


@dataclass(frozen=True)
class Running:
    """A pipeline in its own process group, and the file with its output."""

    process: subprocess.Popen[bytes]
    printed: Path

    def outcome(self) -> Outcome:
        """Wait for the end of the pipeline and return its outcome."""
        self.process.wait(timeout=WAIT_S)
        return Outcome(self.process.returncode, self.printed.read_text())

    def kill(self) -> None:
        """Kill every process of the group without a warning, as a crash of the machine does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=WAIT_S)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition is true; fail if the pipeline ends before."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert self.process.poll() is None, self.printed.read_text()
            assert time.monotonic() < deadline, f"waited for {WAIT_S:.0f} s"
            time.sleep(0.02)


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a Snakemake."""

    code: int
    output: str

    @property
    def jobs(self) -> set[Job]:
        """The jobs in the output: (rule, run), without `all`."""
        found = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)*)", self.output, re.MULTILINE)
        return {(rule, _run_of(details)) for rule, details in found if rule != "all"}

    @property
    def is_nothing(self) -> bool:
        """True if Snakemake found nothing to do."""
        return "Nothing to be done" in self.output


def _run_of(details: str) -> str | None:
    match = re.search(r"wildcards:.*\brun=([^,\s]+)", details)
    return match[1] if match else None


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a fresh clone with the tiny experiment, in a folder whose name needs quoting."""
    folder = tmp_path / "a project"
    copy_repository(folder)
    fresh = Project(folder)
    fresh.write(TINY)
    return fresh


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return the folder of the finished tiny pipeline, which takes half a minute and is run once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "finished"
    with filelock.FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            copy_repository(folder)
            tiny = Project(folder)
            tiny.write(TINY)
            printed = tiny.everstep("run", tiny.config, "--", "--cores", "2")
            assert printed.returncode == 0, printed.stdout + printed.stderr
            (folder / "printed.txt").write_text(printed.stdout)
            (folder / "done").touch()
    return folder


@pytest.fixture
def finished(_finished: Path, tmp_path: Path) -> Project:
    """Return a copy of the finished tiny pipeline with the same modification times, so that nothing is rerun."""
    folder = tmp_path / "finished"
    subprocess.run(["cp", "-a", str(_finished), str(folder)], check=True)
    return Project(folder)
