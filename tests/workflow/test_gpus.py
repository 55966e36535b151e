"""GPUs are shared within a pipeline by Snakemake, and between pipelines by leases. Real pipelines, faked GPUs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.faked_gpus import Machine, machine_with, write
from tests.support.repository import copy_repository
from tests.support.warm import until
from tests.workflow.conftest import WAIT_S, Outcome, Project
from workflow_lib.housekeeping import status, status_table
from workflow_lib.runtime.device_lease import lease_devices

GPU = ("GPU-00000000",)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with one GPU."""
    return machine_with(1, tmp_path / "machine", monkeypatch)


def rows(project: Project) -> list[dict[str, Any]]:
    return status.runs(project.folder / "work", project.folder / "results")


def waiting(project: Project) -> list[dict[str, Any]]:
    """Return the runs that wait for a GPU."""
    return [row for row in rows(project) if row["state"] == "waiting"]


def logs(project: Project) -> str:
    return "".join(path.read_text() for path in (project.folder / "logs/train").rglob("*.log"))


def assert_all_trained_at_first_try(project: Project, runs: int, outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.output
    assert len(list((project.folder / "results").glob("*/runs/*/train.json"))) == runs
    assert [len(row["attempts"]) for row in rows(project)] == [1] * runs
    assert "restart job" not in outcome.output


def test_runs_of_a_pipeline_take_turns_on_the_only_gpu(project: Project, machine: Machine) -> None:
    write(project, 8)
    outcome = project.run("--until", "train")
    assert_all_trained_at_first_try(project, 8, outcome)
    assert re.search(r"Provided resources: gpu\D*1\b", outcome.output)
    assert list(machine.trained()) == ["0"]
    assert len(machine.trained()["0"]) == 8
    assert machine.overlaps() == []
    assert "waiting for a GPU" not in logs(project), "Snakemake started a training that had no GPU"
    assert list(machine.leases.glob("*.json")) == []
    listed = machine.calls.count("-L")
    assert listed == 1 + 8, "once by Snakemake, once by each training"


def test_pipelines_in_two_folders_share_the_only_gpu(project: Project, machine: Machine, tmp_path: Path) -> None:
    """The test holds the GPU until both pipelines wait for it."""
    other = Project(tmp_path / "other")
    copy_repository(other.folder)
    projects = (write(project, 2), write(other, 2))
    expected = f"waiting for a GPU: 0 held by run of the test (pid {os.getpid()}, "
    with ExitStack() as pipelines:
        with lease_devices(1, "run of the test", GPU, folder=machine.leases):
            running = [pipelines.enter_context(each.running("--until", "train")) for each in projects]
            for pipeline, each in zip(running, projects, strict=True):
                pipeline.wait_until(partial(waiting, each))
                (row,) = waiting(each)
                assert row["why"].startswith(expected)
                assert row["owner"]["is_running_here"]
                assert row["why"] in " ".join(status_table.table(rows(each)).split())
                assert expected in logs(each)
            assert not (machine.folder / "trained").exists()
        for pipeline, each in zip(running, projects, strict=True):
            assert_all_trained_at_first_try(each, 2, pipeline.outcome())
    assert len(machine.trained()["0"]) == 4
    assert machine.overlaps() == []
    paths = [path for each in projects for path in (each.folder / "work").rglob("attempts/*.json")]
    records = [json.loads(path.read_text()) for path in paths]
    assert max(record["waited_s"] for record in records) > 1
    assert all(record["seconds"] == record["gpu_seconds"] < 60 for record in records)


def test_more_trainings_than_gpus_start_if_the_command_line_requests_it(project: Project, machine: Machine) -> None:
    """The test holds the GPU until as many trainings wait as there are cores."""
    write(project, 4)
    with ExitStack() as pipeline:
        with lease_devices(1, "run of the test", GPU, folder=machine.leases):
            running = pipeline.enter_context(project.running("--until", "train", "--resources", "gpu=4"))
            running.wait_until(lambda: len(waiting(project)) == 2)
        outcome = running.outcome()
    assert_all_trained_at_first_try(project, 4, outcome)
    assert re.search(r"Provided resources: gpu\D*4\b", outcome.output)
    assert len(machine.trained()["0"]) == 4
    assert machine.overlaps() == []


@pytest.mark.parametrize("by", ["signal", "deadline"])
def test_a_training_that_waits_can_be_stopped(project: Project, machine: Machine, by: str) -> None:
    write(project, 1)
    project.make("--until", "preprocess", "plan")
    (frozen,) = (project.folder / "work/experiments").iterdir()
    (data,) = (project.folder / "results/shared/data").glob("*.json")
    run = json.loads((project.folder / "results/shared/plan.json").read_text())["runs"][0]["id"]
    command = [sys.executable, "-m", "workflow_lib", "train", "--experiment", str(frozen), "--run", run]
    command += ["--data", str(data), "--output", "train.json"]
    command += ["--deadline-minutes", "0.05"] if by == "deadline" else []
    with lease_devices(1, "run of the test", GPU, folder=machine.leases):
        training = subprocess.Popen(command, cwd=project.folder, stderr=subprocess.PIPE, text=True)
        if by == "signal":
            until(lambda: waiting(project), "it waits")
            training.send_signal(signal.SIGTERM)
        errors = training.communicate(timeout=WAIT_S)[1]
    assert training.returncode == 75, errors
    assert "asked to stop while waiting for a GPU; nothing was changed" in errors
    (row,) = rows(project)
    assert (row["state"], row["owner"], row["attempts"]) == ("new", None, [])
    assert list(machine.leases.glob("*.json")) == []


@pytest.mark.parametrize(
    ("gpus", "device", "nproc", "says"),
    [
        (1, "auto", 2, "runtime.nproc: 2 processes need a GPU each, and this machine has cuda:0."),
        (0, "cuda", 1, "runtime.device: cuda, and this machine has no GPU."),
        (1, "cuda:1", 1, "runtime.device: cuda:1, and this machine has cuda:0."),
    ],
)
def test_missing_gpus_are_reported_before_anything_is_started(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, device: str, nproc: int, says: str
) -> None:
    machine_with(gpus, tmp_path / "machine", monkeypatch)
    write(project, 1, device, nproc)
    assert ("train", None) in {(rule, None) for rule, _ in project.plan()}, "a dry-run needs no GPU"
    outcome = project.run()
    assert outcome.code == 2, outcome.output
    assert "nothing was started" in outcome.output
    assert says in outcome.output
    assert not (project.folder / "results").exists()


def test_trainings_on_the_cpu_request_no_gpu_and_run_in_parallel(project: Project, machine: Machine) -> None:
    write(project, 2, "cpu")
    (project.folder / "mine/timed.py").write_text(TOGETHER)
    outcome = project.run("--until", "train", "--config", "set=training.epochs=1")
    assert_all_trained_at_first_try(project, 2, outcome)
    assert machine.calls == []
    assert not machine.leases.exists()
    assert "gpu=1" not in outcome.output


STUDY = """\
tune:
  trials: 1
  space: {optimizer.lr: {type: float, low: 0.001, high: 0.1}}
"""


@pytest.mark.parametrize(
    ("device", "nproc", "asked"),
    [("auto", 2, "gpu=2"), ("cuda", 1, "gpu=1"), ("cuda:1", 1, "gpu=1"), ("cpu", 2, "gpu=0")],
)
def test_trainings_and_trials_request_a_gpu_for_each_process(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, nproc: int, asked: str
) -> None:
    machine = machine_with(2, tmp_path / "machine", monkeypatch)
    write(project, 1, device, nproc)
    project.write((project.folder / project.config).read_text() + STUDY)
    resources = resources_of(project.make("--dry-run").output)
    with_gpus = {rule: found for rule, asks in resources.items() if (found := [ask for ask in asks if "gpu" in ask])}
    assert with_gpus == {"train": [asked], "trial": [asked]}
    assert machine.calls == ([] if device == "cpu" else ["-L"])


def resources_of(output: str) -> dict[str, list[str]]:
    """Return the resources of the jobs of each rule, as Snakemake prints them."""
    found = re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", output, re.MULTILINE)
    return {rule: asks.split(", ") for rule, asks in found}


# Each training waits until the other training has started.
TOGETHER = """\
import os, time
from pathlib import Path


def on_train_start(state):
    Path(f"begun-{os.getpid()}").touch()
    while len(list(Path().glob("begun-*"))) < 2:
        time.sleep(0.05)
"""


@pytest.mark.parametrize(
    ("old", "new", "asked"),
    [
        ("gpu: 1", "gpu: 4", "gpu=4"),
        ("gpu: 1", "gres: gpu:4", "gres=gpu:4"),
        ("gpu: 1", "runtime: 240", None),
    ],
)
def test_jobs_of_a_cluster_request_the_gpus_of_the_profile(
    project: Project, machine: Machine, old: str, new: str, asked: str | None
) -> None:
    write(project, 1, "cuda")
    profile = project.folder / "profiles/slurm/config.yaml"
    profile.write_text(profile.read_text().replace(f"    {old}\n", f"    {new}\n" if "runtime" not in new else ""))
    command = [*project.command("--dry-run")[:-4], "--profile", "profiles/slurm"]
    shown = subprocess.run(command, cwd=project.folder, capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    asks = resources_of(shown.stdout)["train"]
    assert [ask for ask in asks if ask.startswith(("gpu", "gres"))] == ([asked] if asked else [])
    assert machine.calls == []
