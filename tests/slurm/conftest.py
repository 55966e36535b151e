"""A real SLURM that all tests share, and projects whose trainings run on it.

The model of these trainings sleeps in each step for as long as EVERSTEP_TEST_DELAY_S says, so that there is time to
interrupt it without keeping a core busy, also on slow machines. After the interruption, a file `hurry` ends the pauses.
The pauses do not change the result. The reference is the same run, trained on this machine without interruption.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock
import psutil
import pytest
import yaml

from tests.support.repository import ROOT, copy_repository

SANDBOX = ROOT / "scripts" / "slurm-sandbox"

MODEL = r'''\
"""The multilayer perceptron, with a pause in each step until there is a file `hurry`; while there is a file `hang`, it
hangs.

Each process that builds it says in ranks.txt which one it is.
"""

import os
import time
from pathlib import Path

from workflow_lib.models import mlp

Params = mlp.Params


NAMES = ("RANK", "LOCAL_RANK", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES")


def build(params, spec):
    from torch import nn

    with open("ranks.txt", "a") as file:
        file.write(" ".join(os.environ.get(name, "-") for name in NAMES) + "\n")

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp.build(params, spec)

        def forward(self, inputs):
            if self.training and not Path("hurry").exists():
                time.sleep(float(os.environ.get("EVERSTEP_TEST_DELAY_S", "0")))
            while Path("hang").exists():
                time.sleep(0.1)
            return self.inner(inputs)

    return Slow()
'''

EXPERIMENT = """\
name: slow
model: {name: slow, params: {hidden: [8], dropout: 0.1}}
training: {epochs: 30}
checkpoint: {interval_steps: 20}
runtime: {lease_wait_s: 1, lease_timeout_s: 10}
"""
# Timeout of every wait. It is long because all nodes may be busy for minutes; a test that passes does not wait for it.
WAIT_S = 600.0
EVERSTEP = (sys.executable, "-m", "workflow_lib", "run", "config/slow.yaml")
SNAKEMAKE = (str(Path(sys.executable).parent / "snakemake"), "--configfile=config/slow.yaml")


@dataclass(frozen=True)
class Job:
    """A job as squeue sees it."""

    id: str
    state: str
    node: str


@dataclass(frozen=True)
class Cluster:
    """The sandbox."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a shell that has read the sandbox's env.sh."""
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        return os.environ | {"SLURM_CONF": f"{self.folder}/slurm.conf", "PATH": path}

    def sandbox(self, *words: str) -> str:
        """Return the output of scripts/slurm-sandbox, which must succeed."""
        command = [str(SANDBOX), "--dir", str(self.folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, *command: str) -> str:
        """Return the output of a SLURM command; empty if the controller does not answer."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=WAIT_S
        ).stdout.strip()

    def spent(self, job: str) -> list[float]:
        """Return the seconds of each start of the job, according to SLURM."""
        lines = (self.folder / "log" / "jobs.txt").read_text().splitlines()
        facts = [dict(re.findall(r"(\w+)=(\S+)", line)) for line in lines]
        times = [
            [datetime.fromisoformat(record[name]) for name in ("StartTime", "EndTime")]
            for record in facts
            if record["JobId"] == job
        ]
        return [(end - start).total_seconds() for start, end in times]

    def occupy(self, node: str, seconds: int) -> str:
        """Submit a job of high priority that takes the node for so long, and return its id."""
        script = f"sleep {seconds}"
        where = ("--partition=gpu", f"--nodelist={node}", "--exclusive", "--gres=gpu:2")
        return self.ask("sbatch", "--parsable", *where, "--output=/dev/null", f"--wrap={script}")


@dataclass
class Project:
    """A copy of the repository with prepared data, whose jobs run on the cluster."""

    folder: Path
    cluster: Cluster
    train: dict[str, Any] = field(default_factory=dict)
    delay_s: float = 0.1  # the training then takes a minute
    makes_all: bool = False  # the whole pipeline, not only the training of the only run
    check_s: int = 2  # before the first check of the jobs' status

    @property
    def run(self) -> str:
        """The id of the only run."""
        return str(json.loads((self.folder / "results/slow/plan.json").read_text())["runs"][0]["id"])

    @property
    def target(self) -> Path:
        """The statement of the only run."""
        return self.folder / "results" / "slow" / "runs" / self.run / "train.json"

    @property
    def workspace(self) -> Path:
        """The workspace of the run."""
        return next(self.folder.glob("work/runs/*/*/attempts")).parent

    def epochs(self) -> int:
        """Return the number of finished epochs."""
        return sum(len(path.read_text().splitlines()) for path in self.folder.glob("work/runs/*/*/metrics.jsonl"))

    def attempts(self) -> list[dict[str, Any]]:
        """Return the records of the attempts, the oldest first."""
        records = [json.loads(path.read_text()) for path in self.folder.glob("work/runs/*/*/attempts/*.json")]
        return sorted(records, key=lambda record: record["began"])

    def attempts_by_run(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the folder of the run and the record of each attempt, sorted by run, then the oldest first."""
        paths = self.folder.glob("work/runs/*/*/attempts/*.json")
        found = [(path.parts[-4], json.loads(path.read_text())) for path in paths]
        return sorted(found, key=lambda pair: (pair[0], pair[1]["began"]))

    def jobs(self) -> list[Job]:
        """Return the queued and running jobs of this project."""
        listed = self.cluster.ask("squeue", "--noheader", "--format=%i|%T|%N|%Z")
        rows = [line.split("|") for line in listed.splitlines()]
        return [Job(*row[:3]) for row in rows if row[3] == str(self.folder)]

    def running_job(self) -> Job | None:
        """Return the running job, or None."""
        return next((job for job in self.jobs() if job.state == "RUNNING"), None)

    def write_profile(self) -> None:
        """Write profiles/slurm: the shipped profile with this project's changes and shorter waits."""
        path = self.folder / "profiles" / "slurm" / "config.yaml"
        profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
        profile |= {"slurm-init-seconds-before-status-checks": self.check_s, "latency-wait": 10}
        for rule in ("train", "pack"):
            profile["set-resources"][rule] |= {"slurm_extra": "'--exclusive'", "mem_mb": 500, **self.train}
        path.write_text(yaml.safe_dump(profile))

    @contextmanager
    def snakemake(self, command: Sequence[str] = SNAKEMAKE) -> Iterator[Snakemake]:
        """Run Snakemake, which trains the run on the cluster; end it and its jobs after the block."""
        self.write_profile()
        process = Snakemake(self, command)
        try:
            yield process
        finally:
            process.kill()
            for job in self.jobs():
                self.cluster.ask("scancel", "--full", job.id)
            wait_until(lambda: not self.jobs())

    def make(self) -> str:
        """Run Snakemake, which must succeed, and return its output."""
        with self.snakemake() as process:
            return process.finish()

    def make_here(self) -> None:
        """Train the run on this machine, without SLURM."""
        run_here(self.folder, str(self.target.relative_to(self.folder)))

    def result(self) -> dict[str, str]:
        """Return the digests of the files that the training decides: weights, curve, and final checkpoint."""
        statement = json.loads(self.target.read_text())
        assert statement["exact"]
        sealed = self.folder / statement["sealed"]
        files = [*sealed.glob("*.safetensors"), sealed / "state.json"]
        files += [self.target.with_name("model.safetensors"), self.target.with_name("history.csv")]
        return {path.name: hashlib.blake2b(path.read_bytes()).hexdigest() for path in files}


class Snakemake:
    """The Snakemake process of a project, which a test may kill."""

    def __init__(self, project: Project, command: Sequence[str]) -> None:
        self._project = project
        self.log = project.folder / "snakemake.log"
        targets = [] if project.makes_all else [str(project.target.relative_to(project.folder))]
        targets = ["--", *targets] if command == EVERSTEP else targets
        words = [*command, "--profile", "profiles/slurm", *targets]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                words,
                cwd=project.folder,
                env=project.cluster.environment | {"EVERSTEP_TEST_DELAY_S": str(project.delay_s)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Kill it and its children on this machine, in any process group, but not its jobs."""
        if self.process.poll() is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            os.killpg(self.process.pid, signal.SIGKILL)
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            self.process.wait()

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until the condition is true; fail if Snakemake ends before."""

        def is_over() -> bool:
            return bool(condition()) or self.process.poll() is not None

        try:
            wait_until(is_over)
        except TimeoutError:
            pytest.fail(f"not true after {WAIT_S} s\n{self.log.read_text()}\n{self._project.attempts()}")
        assert condition(), self.log.read_text()

    def until_trained(self) -> str:
        """Return the output when the run, without pauses, is finished and its job has ended.

        Snakemake notices the end up to a minute later.
        """
        (self._project.folder / "hurry").touch()
        self.wait_for(lambda: self._project.target.exists() and not self._project.jobs())
        return self.log.read_text()

    def finish(self) -> str:
        """End the pauses, wait until Snakemake has succeeded, and return its output."""
        (self._project.folder / "hurry").touch()
        self.wait_for(lambda: self.process.poll() is not None)
        assert self.process.returncode == 0, self.log.read_text()
        return self.log.read_text()


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until the condition is true. Raises TimeoutError."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the tests that take minutes first."""
    items.sort(key=lambda item: "test_time_limit" not in item.nodeid)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all workers of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def cluster(shared: Path, worker_id: str) -> Iterator[Cluster]:
    """The sandbox: the first worker that uses it starts it, and the last one stops it."""
    users, place = shared / "sandbox-users", shared / "sandbox.txt"
    with filelock.FileLock(shared / "sandbox.lock"):
        if not place.exists():
            users.mkdir()
            place.write_text(tempfile.mkdtemp(prefix="everstep-", dir="/tmp"))  # short, as sockets need it
        sandbox = Cluster(Path(place.read_text()))
        (users / worker_id).touch()
        sandbox.sandbox("start")
    yield sandbox
    with filelock.FileLock(shared / "sandbox.lock"):
        (users / worker_id).unlink()
        if not list(users.iterdir()):
            sandbox.sandbox("stop")
            shutil.rmtree(sandbox.folder)


@pytest.fixture(scope="session")
def prepared(shared: Path) -> Path:
    """A project with prepared data and no training yet."""
    folder = shared / "prepared"
    with filelock.FileLock(shared / "prepared.lock"):
        if not (folder / "results").exists():
            copy_repository(folder)
            (folder / "workflow_lib" / "models" / "slow.py").write_text(MODEL)
            (folder / "config" / "slow.yaml").write_text(EXPERIMENT)
            run_here(folder, "--until", "plan", "preprocess")
    return folder


@pytest.fixture(scope="session")
def reference(shared: Path, prepared: Path) -> dict[str, str]:
    """The expected result: the run, trained on this machine without interruption."""
    folder = shared / "reference"
    with filelock.FileLock(shared / "reference.lock"):
        undisturbed = Project(folder, Cluster(folder))
        if not folder.exists():
            shutil.copytree(prepared, folder)
            undisturbed.make_here()
        return undisturbed.result()


@pytest.fixture
def project(cluster: Cluster, prepared: Path, reference: dict[str, str], tmp_path: Path) -> Project:
    """A project for this test alone."""
    folder = tmp_path / "project"
    subprocess.run(["cp", "-a", str(prepared), str(folder)], check=True)
    return Project(folder, cluster)


def run_here(folder: Path, *arguments: str) -> None:
    """Run Snakemake on this machine; it must succeed."""
    command = [*SNAKEMAKE, *arguments, "--profile", "profiles/local", "--cores", "4"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
