"""A real SLURM that all tests share, and projects whose training goes to it.

The model of these trainings sleeps in each step for as long as EVERSTEP_TEST_DELAY_S says, so that there is time to
disturb it without keeping a core busy, on a slow machine too; when that is done it hurries. The run is the same with
and without. The reference is the same run, trained on this machine in one go.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock
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
# For what must come at some time: what passes waits no longer for it, and all nodes may be taken for minutes.
WAIT_S = 600.0
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
        """What a person gets by reading the sandbox's env.sh."""
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        return os.environ | {"SLURM_CONF": f"{self.folder}/slurm.conf", "PATH": path}

    def sandbox(self, *words: str) -> str:
        """What scripts/slurm-sandbox prints; it must succeed."""
        command = [str(SANDBOX), "--dir", str(self.folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, *command: str) -> str:
        """What a command of SLURM prints; empty when the controller does not answer."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=WAIT_S
        ).stdout.strip()

    def spent(self, job: str) -> list[float]:
        """Seconds of each start of the job, as SLURM counts them."""
        lines = (self.folder / "log" / "jobs.txt").read_text().splitlines()
        facts = [dict(re.findall(r"(\w+)=(\S+)", line)) for line in lines]
        times = [
            [datetime.fromisoformat(one[name]) for name in ("StartTime", "EndTime")]
            for one in facts
            if one["JobId"] == job
        ]
        return [(end - start).total_seconds() for start, end in times]

    def occupy(self, node: str, seconds: int) -> str:
        """The id of a job of high priority that takes the node for so long."""
        script = f"sleep {seconds}"
        where = ("--partition=gpu", f"--nodelist={node}", "--exclusive", "--gres=gpu:2")
        return self.ask("sbatch", "--parsable", *where, "--output=/dev/null", f"--wrap={script}")


@dataclass
class Project:
    """A copy of the repository, with its data prepared, whose jobs go to the cluster."""

    folder: Path
    cluster: Cluster
    train: dict[str, Any] = field(default_factory=dict)
    delay_s: float = 0.1  # the training then takes a minute

    @property
    def run(self) -> str:
        """The id of the one run."""
        return str(json.loads((self.folder / "results/slow/plan.json").read_text())["runs"][0]["id"])

    @property
    def target(self) -> Path:
        """The statement of the one run."""
        return self.folder / "results" / "slow" / "runs" / self.run / "train.json"

    @property
    def workspace(self) -> Path:
        """Where the run keeps its state."""
        return next(self.folder.glob("work/runs/*/*/attempts")).parent

    def epochs(self) -> int:
        """How many epochs of the run have ended."""
        return sum(len(path.read_text().splitlines()) for path in self.folder.glob("work/runs/*/*/metrics.jsonl"))

    def attempts(self) -> list[dict[str, Any]]:
        """The records of the attempts, the oldest first."""
        records = [json.loads(path.read_text()) for path in self.folder.glob("work/runs/*/*/attempts/*.json")]
        return sorted(records, key=lambda record: record["began"])

    def jobs(self) -> list[Job]:
        """The jobs of this project that are not over."""
        listed = self.cluster.ask("squeue", "--noheader", "--format=%i|%T|%N|%Z")
        rows = [line.split("|") for line in listed.splitlines()]
        return [Job(*row[:3]) for row in rows if row[3] == str(self.folder)]

    def running_job(self) -> Job | None:
        """The job that trains."""
        return next((job for job in self.jobs() if job.state == "RUNNING"), None)

    def write_profile(self) -> None:
        """profiles/slurm is the shipped one, with this project's changes and shorter waits."""
        path = self.folder / "profiles" / "slurm" / "config.yaml"
        profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
        profile |= {"slurm-init-seconds-before-status-checks": 2, "latency-wait": 10}
        profile["set-resources"]["train"] |= {"slurm_extra": "'--exclusive'", "mem_mb": 500, **self.train}
        path.write_text(yaml.safe_dump(profile))

    @contextmanager
    def snakemake(self) -> Iterator[Snakemake]:
        """Snakemake makes the run's statement with the jobs of the cluster; nothing of it outlives the block."""
        self.write_profile()
        process = Snakemake(self)
        try:
            yield process
        finally:
            process.kill()
            for job in self.jobs():
                self.cluster.ask("scancel", "--full", job.id)
            wait_until(lambda: not self.jobs())

    def make(self) -> str:
        """What a Snakemake said that had to succeed."""
        with self.snakemake() as process:
            return process.finish()

    def make_here(self) -> None:
        """The run's statement was made on this machine, without SLURM."""
        run_here(self.folder, str(self.target.relative_to(self.folder)))

    def result(self) -> dict[str, str]:
        """Every bit that the training decides: the served weights, the curve, and the final checkpoint."""
        statement = json.loads(self.target.read_text())
        assert statement["exact"]
        sealed = self.folder / statement["sealed"]
        files = [*sealed.glob("*.safetensors"), sealed / "state.json"]
        files += [self.target.with_name("model.safetensors"), self.target.with_name("history.csv")]
        return {path.name: hashlib.blake2b(path.read_bytes()).hexdigest() for path in files}


class Snakemake:
    """The controller of a project: what a person starts, and a test may kill."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self.log = project.folder / "snakemake.log"
        command = [*SNAKEMAKE, str(project.target.relative_to(project.folder)), "--profile", "profiles/slurm"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=project.folder,
                env=project.cluster.environment | {"EVERSTEP_TEST_DELAY_S": str(project.delay_s)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """It is gone without a word, and its children here with it; its jobs are not."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def wait_for(self, condition: Callable[[], object]) -> None:
        """The condition came true while Snakemake ran."""

        def is_over() -> bool:
            return bool(condition()) or self.process.poll() is not None

        try:
            wait_until(is_over)
        except TimeoutError:
            pytest.fail(f"waited {WAIT_S} s in vain\n{self.log.read_text()}\n{self._project.attempts()}")
        assert condition(), self.log.read_text()

    def until_trained(self) -> str:
        """What it had said when the run, in a hurry, was finished and its job over; it notices up to a minute later."""
        (self._project.folder / "hurry").touch()
        self.wait_for(lambda: self._project.target.exists() and not self._project.jobs())
        return self.log.read_text()

    def finish(self) -> str:
        """What it said, once it has ended well; the run hurries."""
        (self._project.folder / "hurry").touch()
        self.wait_for(lambda: self.process.poll() is not None)
        assert self.process.returncode == 0, self.log.read_text()
        return self.log.read_text()


def wait_until(condition: Callable[[], object]) -> None:
    """The condition is true."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take minutes start first."""
    items.sort(key=lambda item: "test_time_limit" not in item.nodeid)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all workers of this test run see."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def cluster(shared: Path, worker_id: str) -> Iterator[Cluster]:
    """The sandbox: the first worker that wants it starts it, the last one that had it stops it."""
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
    """A project whose data is prepared and whose training is still to be done."""
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
    """What the run must give: trained here, undisturbed."""
    folder = shared / "reference"
    with filelock.FileLock(shared / "reference.lock"):
        undisturbed = Project(folder, Cluster(folder))
        if not folder.exists():
            shutil.copytree(prepared, folder)
            undisturbed.make_here()
        return undisturbed.result()


@pytest.fixture
def project(cluster: Cluster, prepared: Path, reference: dict[str, str], tmp_path: Path) -> Project:
    """A project of this test alone."""
    folder = tmp_path / "project"
    subprocess.run(["cp", "-a", str(prepared), str(folder)], check=True)
    return Project(folder, cluster)


def run_here(folder: Path, *arguments: str) -> None:
    """Snakemake has done it on this machine."""
    command = [*SNAKEMAKE, *arguments, "--profile", "profiles/local", "--cores", "4"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
