"""A job can requeue itself, unless it was submitted with --no-requeue, and knows its time limit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import ROOT
from workflow_lib.slurm.job import requeue_own_job, seconds_left

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
