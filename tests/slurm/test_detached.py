"""The pipeline as a job of its own: `everstep run --detach`."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

from tests.slurm.conftest import wait_until


def submit(project: Any, minutes: int) -> subprocess.CompletedProcess[str]:
    """Submit the pipeline of the project's run with this time limit."""
    project.write_profile()
    words = [
        "run",
        "config/slow.yaml",
        "--profile",
        "slurm",
        "--detach",
        "--",
        str(project.target.relative_to(project.folder)),
    ]
    environment = project.cluster.environment | {
        "SBATCH_TIMELIMIT": str(minutes),
        "EVERSTEP_TEST_DELAY_S": str(project.delay_s),
    }
    return subprocess.run(
        [sys.executable, "-m", "workflow_lib", *words],
        cwd=project.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def restarts(project: Any, job: str) -> int:
    return int(re.findall(r"Restarts=(\d+)", project.cluster.ask("scontrol", "show", "job", job))[0])


EDITED = (
    "Snakefile",
    "rules/common.smk",
    "config/slow.yaml",
    "profiles/slurm/config.yaml",
    "workflow_lib/__init__.py",
    "workflow_lib/models/slow.py",
)


def test_a_controller_that_slurm_interrupts_leaves_its_jobs_and_runs_what_was_submitted(
    project: Any, reference: dict[str, str]
) -> None:
    """It is requeued by SLURM, and then requeues itself before its time limit."""
    project.delay_s = 1.0  # no training of this length ends within the time limit
    submitted, logs = submit(project, minutes=2), project.folder / "logs" / "run"
    assert submitted.returncode == 0, submitted.stderr
    job = re.findall(r"^job (\d+) runs the pipeline", submitted.stdout)[0]
    again = submit(project, minutes=2)
    assert again.returncode == 2, again.stdout
    assert f"job {job} runs the pipeline of slow already" in again.stderr
    try:
        wait_until(lambda: [attempt for attempt in project.attempts() if attempt["ended"] is None])
        project.cluster.ask("scontrol", "requeue", job)
        wait_until(lambda: restarts(project, job) >= 2)
        for name in EDITED:
            (project.folder / name).write_text("this: [is neither an experiment nor code")
        (training,) = {attempt["job"] for attempt in project.attempts()}
        taken = f"is SLURM job {training} of an earlier Snakemake"
        wait_until(lambda: taken in "".join(path.read_text() for path in logs.glob("*.log")))
        (project.folder / "hurry").touch()
        wait_until(lambda: not project.jobs())
    finally:
        for left in project.jobs():
            project.cluster.ask("scancel", "--full", left.id)
        wait_until(lambda: not project.jobs())
    said = (project.folder / f"logs/run/slurm-{job}.log").read_text()
    assert project.target.exists(), said
    assert project.result() == reference
    assert re.findall(
        r"^everstep run: (.*): Snakemake was ended, and its jobs stay in the queue; this", said, re.M
    ) == [
        "SLURM requeues this job",
        "the time limit of this job is near",
    ]
    assert said.count("everstep run: ") == 2, said
