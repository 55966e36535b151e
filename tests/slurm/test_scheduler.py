"""A job can requeue itself, unless it was submitted with --no-requeue, and knows its time limit."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import wait_until
from tests.support.repository import ROOT
from workflow_lib.slurm.job import requeue_own_job, seconds_left
from workflow_lib.store import controllers

CODE = (
    "import os; from workflow_lib.slurm import job;"
    "print(job.requeue_own_job(7), job._facts(os.environ['SLURM_JOB_ID'])['TimeLimit'], flush=True)"
)
SCRIPT = f"""#!/bin/sh
[ -n "$SLURM_RESTART_COUNT" ] && echo "started again" && exit
exec {sys.executable} -c "{CODE}"
"""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--requeue", "--time=3"], ["True 00:03:00", "started again"]),
        (["--requeue", "--time=3", "--time-min=2"], ["True 00:07:00", "started again"]),  # it may have been shortened
        (["--no-requeue", "--time=3"], ["False 00:03:00"]),
    ],
)
def test_a_job_requeues_itself_if_it_may(cluster: Any, tmp_path: Path, options: list[str], said: list[str]) -> None:
    script, output = tmp_path / "job.sh", tmp_path / "output"
    script.write_text(SCRIPT)
    cluster.ask("sbatch", "--wait", *options, "--open-mode=append", f"--output={output}", str(script))
    assert [line for line in output.read_text().splitlines() if not line.startswith("slurmstepd")] == said


TOLD = """\
import os, signal, sys
from workflow_lib.slurm import job

if "SLURM_RESTART_COUNT" in os.environ:
    sys.exit()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print(job.interruption(), flush=True)))
print("started", flush=True)
signal.pause()
"""


@pytest.mark.parametrize(
    ("ended_by", "told"),
    [
        (["scontrol", "requeue"], "Interruption(reason='SLURM requeues this job', is_requeued=True)"),
        (["scancel"], "None"),
        (None, "Interruption(reason='this job is over its time limit', is_requeued=False)"),
    ],
)
def test_a_job_knows_why_slurm_ends_it(cluster: Any, tmp_path: Path, ended_by: list[str] | None, told: str) -> None:
    output = tmp_path / "output"
    options = ("--parsable", "--time=1", "--requeue", "--open-mode=append", f"--output={output}")
    number = cluster.ask("sbatch", *options, f"--wrap=exec {sys.executable} -c {shlex.quote(TOLD)}")

    def lines() -> list[str]:
        printed = output.read_text().splitlines() if output.exists() else []
        return [line for line in printed if not line.startswith("slurmstepd")]

    wait_until(lambda: lines() == ["started"])
    if ended_by:
        cluster.ask(*ended_by, number)
    wait_until(lambda: len(lines()) > 1)
    assert lines() == ["started", told]


def test_the_lock_of_a_controller_on_another_host_is_removed_once_its_job_has_ended(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    ended = cluster.ask("sbatch", "--parsable", "--wait", "--output=/dev/null", "--wrap=true")
    waiting = cluster.ask("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 600")
    wait_until(lambda: cluster.ask("squeue", "--noheader", "--jobs", waiting, "--format=%T") == "RUNNING")
    held = tmp_path / "held"
    for host, job, is_gone in [("n1.site", ended, True), ("n1", waiting, False), ("no-node", ended, False)]:
        held.write_text(f"{host} 1 {job}")
        assert controllers._is_dead(held) is is_gone, host
    cluster.ask("scancel", waiting)


ARRAY = """\
import os, subprocess, time
from pathlib import Path
from workflow_lib.slurm import job
from workflow_lib.store import lease

number, task, again = (os.environ.get("SLURM_" + name) for name in ("JOB_ID", "ARRAY_TASK_ID", "RESTART_COUNT"))
if again:
    print("started again")
elif number == os.environ["SLURM_ARRAY_JOB_ID"]:
    while job.seconds_left() is None or not Path("shortened").exists():
        time.sleep(0.1)
    print(round(job.seconds_left() / 60), job.requeue_own_job(), flush=True)
else:
    subprocess.run(["scontrol", "update", f"JobId={number}", "TimeLimit=2"], check=True)
    Path("shortened").touch()
    array = os.environ["SLURM_ARRAY_JOB_ID"]
    while not lease._job_is_gone(array, time.monotonic_ns()):
        time.sleep(0.1)
    print(round(job.seconds_left() / 60), "undisturbed")
"""


def test_the_task_of_an_array_is_told_from_the_array_whose_number_it_has(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(ARRAY)
    given = ["--wait", "--array=1-2", "--requeue", "--time=4", "--open-mode=append", f"--chdir={tmp_path}"]
    cluster.ask("sbatch", *given, "--output=%a", f"--wrap=exec env PYTHONPATH={ROOT} {sys.executable} task.py")
    said = [
        [line for line in (tmp_path / task).read_text().splitlines() if not line.startswith("slurmstepd")]
        for task in "12"
    ]
    assert said == [["2 undisturbed"], ["4 True", "started again"]]


def test_a_job_knows_the_rest_of_its_time(cluster: Any, tmp_path: Path) -> None:
    code = "from workflow_lib.launch.context import time_left; print(*map(time_left, (None, 60, 1)))"
    ask = f"{sys.executable} -c '{code}'"
    output = tmp_path / "output"
    cluster.ask("sbatch", "--wait", "--time=5", f"--output={output}", f"--wrap=sleep 3; {ask}")
    untold, told_more, told_less = map(float, output.read_text().split())
    assert 0 < told_more <= untold <= 5 * 60 - 2
    assert told_less == 60


def test_outside_of_a_job_there_is_no_requeue_and_no_limit() -> None:
    assert not requeue_own_job(environ={})
    assert seconds_left({}) is None


def test_a_job_that_slurm_does_not_know_has_no_limit(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    assert seconds_left({"SLURM_JOB_ID": "999999"}) is None
