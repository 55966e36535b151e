"""The pipeline as a job of SLURM of its own, for sites that allow no long processes on their login nodes.

It runs what was submitted: the frozen experiment, and the code, rules and profile of a snapshot. Before its time limit
the job ends Snakemake, leaves in the queue what Snakemake has submitted, and requeues itself: the next Snakemake
continues as after a kill. It does the same if SLURM ends it without being told to cancel it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from workflow_lib.errors import EverstepError, Stopped, UserError, shortened
from workflow_lib.live.recorder import COMMAND
from workflow_lib.live.submission import Submission
from workflow_lib.slurm import job, queue
from workflow_lib.slurm.profile import Profile, read_profile
from workflow_lib.store import code_snapshot
from workflow_lib.store.controllers import DETACHED, stop_command

NEAR = job.Interruption("the time limit of this job is near", is_requeued=False)
MARGIN_S = 60.0  # before the time limit; a quarter of the time if that is less
# resources of the profile's jobs that the controller's job needs as well
OPTIONS = {"slurm_partition": "partition", "slurm_account": "account", "qos": "qos", "clusters": "clusters"}


def check(profile: Path) -> Profile:
    """Return the profile. Raises UserError if it is not one of SLURM, or there is no SLURM."""
    defaults = read_profile(profile)
    if defaults.values.get("executor") != "slurm":
        raise UserError(f"--detach: {defaults.path} has no `executor: slurm`; name a profile for SLURM with --profile")
    if shutil.which("sbatch") is None:
        raise UserError("--detach: there is no SLURM on this machine (no command `sbatch`)")
    return defaults


def submit(submission: Submission, arguments: Sequence[str], typed: Sequence[str], logs: Path) -> str:
    """Submit a job that runs the pipeline in the current folder; return what to type next.

    `arguments` go to Snakemake; `typed` is the command that submits the same pipeline again. Variables such as
    SBATCH_PARTITION and SBATCH_TIMELIMIT win over the profile. Raises UserError if SLURM rejects the job.
    """
    defaults = check(submission.profile)
    for number, state in queue.pipelines_of(Path.cwd(), submission.name).items():
        raise UserError(
            f"--detach: job {number} runs the pipeline of {submission.name} already (it is {state}). Nothing was "
            f"submitted. Let it finish, or stop it: {stop_command(number)}"
        )
    logs.mkdir(parents=True, exist_ok=True)
    asked = defaults.asked("")
    options = {
        "job-name": queue.CONTROLLER,
        "comment": f"{queue.OF_PIPELINE}{submission.name}",
        "output": f"{logs}/slurm-%j.log",
        "open-mode": "append",
        "mem": "2000M",
        **{option: asked[name] for name, option in OPTIONS.items() if name in asked},
    }
    script = [
        "#!/bin/bash",
        *(f"#SBATCH --{option}={value}" for option, value in options.items()),
        "#SBATCH --requeue",
        f"export {DETACHED}=$SLURM_JOB_ID",
        *(f"export {name}={shlex.quote(value)}" for name, value in _variables(submission, typed).items()),
        f"exec {shlex.join([sys.executable, '-m', 'workflow_lib', *submission.command(), '--', *arguments])}",
    ]
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"],
            input="\n".join([*script, ""]),
            capture_output=True,
            text=True,
            check=False,
            timeout=job.TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise UserError("--detach: `sbatch` does not answer; look with `squeue --me` before you try again") from None
    if done.returncode != 0:
        raise UserError(f"--detach: SLURM rejects the job: {shortened(' '.join(done.stderr.split()), 300)}")
    number = done.stdout.strip().partition(";")[0]
    return (
        f"job {number} runs the pipeline; its output is in {logs}/slurm-{number}.log, and `everstep status --watch` "
        "shows the runs.\n"
        f"To stop it and its jobs, which save: {stop_command(number)}"
    )


def _variables(submission: Submission, typed: Sequence[str]) -> dict[str, str]:
    found = {COMMAND: shlex.join(typed)}
    if submission.code is None:
        return found
    code = {code_snapshot.SUBMITTED: str(submission.code), **code_snapshot.environment(submission.code)}
    return found | code


def is_here(environ: Mapping[str, str] = os.environ) -> bool:
    """Return True in a job of `submit`."""
    return environ.get(DETACHED, "") == environ.get("SLURM_JOB_ID")


def typed(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the command that submitted the job of this process; None elsewhere."""
    return environ.get(COMMAND) if is_here(environ) else None


def ends_at(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return the time (of time.monotonic) at which the job of `submit` must requeue itself; None elsewhere."""
    left_s = job.seconds_left(environ) if is_here(environ) else None
    return None if left_s is None else time.monotonic() + left_s - min(MARGIN_S, left_s / 4)


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for Snakemake, which must not submit jobs with the variables of the job of `submit`."""
    hidden = {name for name in environ if name.startswith("SLURM_")} - {"SLURM_CONF"} if is_here(environ) else set()
    return {name: value for name, value in environ.items() if name not in hidden}


def interruption(environ: Mapping[str, str] = os.environ) -> job.Interruption | None:
    """Return why SLURM ends the job of `submit`; None if it was cancelled, does not end, or elsewhere."""
    return job.interruption(environ) if is_here(environ) else None


def requeue(why: job.Interruption = NEAR) -> None:
    """Requeue the job of this process, which must then end. Raises Stopped if it returns, else EverstepError."""
    told = f"{why.reason}: Snakemake was ended, and its jobs stay in the queue"
    if why.is_requeued or job.requeue_own_job(is_ending=why is not NEAR):
        raise Stopped(f"{told}; this job returns to it")
    raise EverstepError(f"{told}. This job does not return to it: run the same command again")
