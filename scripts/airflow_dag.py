"""An Airflow 3 DAG that runs a pipeline of Everstep on a schedule.

Copy this file to Airflow's folder of DAGs, and change the settings below, or their variables of the environment.
docs/airflow.md explains them.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

from airflow.sdk import DAG, BaseOperator, Param
from airflow.sdk.exceptions import AirflowException, AirflowFailException

PROJECT = Path(os.environ.get("EVERSTEP_PROJECT", "/path/to/project"))
EVERSTEP = os.environ.get("EVERSTEP_PROGRAM", str(PROJECT / ".venv" / "bin" / "everstep"))
SCHEDULE = os.environ.get("EVERSTEP_SCHEDULE", "0 2 * * *")  # each night; "@continuous", or "" for by hand only
# A task that takes longer saves, and its next try goes on. 0: no limit.
TIMEOUT_S = float(os.environ.get("EVERSTEP_TIMEOUT_S", "0"))
SAVE_S = float(os.environ.get("EVERSTEP_SAVE_S", "600"))  # time to save after the timeout; then jobs are killed
RETRIES = int(os.environ.get("EVERSTEP_RETRIES", "5"))
RETRY_DELAY_S = float(os.environ.get("EVERSTEP_RETRY_DELAY_S", "300"))

BAD_INPUT, STOPPED = 2, 75  # exit codes of everstep


class EverstepOperator(BaseOperator):
    """Does `everstep run`. A mistake in the input fails without another try; everything else is tried again.

    A try goes on where the one before ended. Lines that everstep prints are in the log of the task.
    """

    template_fields = ("experiment", "profile", "overrides")

    def __init__(self, *, experiment: str, profile: str, overrides: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.experiment, self.profile, self.overrides = experiment, profile, overrides

    def execute(self, context: Any) -> None:
        command = [EVERSTEP, "run", self.experiment, "--profile", self.profile]
        command += ["--set", self.overrides] if self.overrides else []
        self.log.info("%s (in %s)", " ".join(command), PROJECT)
        # A file, since everstep must be able to print while nobody reads, after this process was killed.
        with tempfile.NamedTemporaryFile() as printed, Path(printed.name).open(errors="replace") as lines:
            self.process = subprocess.Popen(
                command, cwd=PROJECT, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code, said = self._follow(lines)
            except BaseException:  # the timeout of the task
                self.log.info("everstep is stopped: it saves, for at most %.0f s", SAVE_S)
                self.process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(SAVE_S)
                raise
        if code == BAD_INPUT:
            raise AirflowFailException(f"everstep rejects its input, so there is no other try: {said}")
        if code == STOPPED:
            raise AirflowException("everstep was stopped and has saved: the next try goes on")
        if code != 0:
            raise AirflowException(f"everstep ended with exit code {code}: {said}")

    def _follow(self, lines: TextIO) -> tuple[int, str]:
        """Log what is printed until the end of the process; return its exit code and the last lines."""
        last: deque[str] = deque(maxlen=3)
        while True:
            code = self.process.poll()
            for line in lines:
                self.log.info("%s", line.rstrip())
                last.append(line.strip())
            if code is not None:
                return code, "; ".join(last)
            time.sleep(1)

    def on_kill(self) -> None:
        """Ask for a save; Airflow calls this when the task is stopped, and after a timeout."""
        self.process.terminate()


with DAG(
    dag_id="everstep",
    schedule=SCHEDULE or None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params={
        "experiment": Param("config/config.yaml", type="string", description="experiment file, from the project"),
        "profile": Param("local", type="string", description="local, slurm, or the folder of a profile"),
        "set": Param("", type="string", description="settings to override: training.epochs=20 seed=7"),
    },
):
    EverstepOperator(
        task_id="run",
        experiment="{{ params.experiment }}",
        profile="{{ params.profile }}",
        overrides="{{ params.set }}",
        retries=RETRIES,
        retry_delay=timedelta(seconds=RETRY_DELAY_S),
        execution_timeout=timedelta(seconds=TIMEOUT_S) if TIMEOUT_S else None,
    )
