"""A job that asks to be started again is, unless it was submitted as one that must not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from workflow_lib.runtime.scheduler import requeue_own_job

SCRIPT = f"""#!/bin/sh
[ -n "$SLURM_RESTART_COUNT" ] && echo "started again" && exit
exec {sys.executable} -c "from workflow_lib.runtime import scheduler; print(scheduler.requeue_own_job(), flush=True)"
"""


@pytest.mark.parametrize(("option", "last"), [("--requeue", "started again"), ("--no-requeue", "False")])
def test_a_job_is_started_again_if_it_may_be(cluster: Any, tmp_path: Path, option: str, last: str) -> None:
    script, output = tmp_path / "job.sh", tmp_path / "output"
    script.write_text(SCRIPT)
    cluster.ask("sbatch", "--wait", option, "--open-mode=append", f"--output={output}", str(script))
    assert output.read_text().splitlines()[-1] == last


def test_outside_of_a_job_there_is_nothing_to_start_again() -> None:
    assert not requeue_own_job({})
