"""One launcher on each node of a job: the process of the first node starts them all with ``srun``.

SLURM gives each launcher its number. They connect to the first node, at a port that was free there when the job began,
so that two jobs on one node do not share a port.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from workflow_lib.errors import ConfigError
from workflow_lib.slurm import job

PORT = "EVERSTEP_RENDEZVOUS_PORT"
TOKEN = "EVERSTEP_RENDEZVOUS_TOKEN"


def is_one_of_many(environ: Mapping[str, str] = os.environ) -> bool:
    """Return True if this process is one of the launchers that ``start`` runs."""
    return PORT in environ


def number(environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of this node; 0 is the first."""
    return int(environ.get("SLURM_NODEID", 0))


def start(count: int, cpus: int) -> NoReturn:
    """Replace this process by ``srun``, which runs this command once on each node of the job, with `cpus` CPUs each.

    Raises ConfigError outside of a SLURM job.
    """
    if "SLURM_JOB_ID" not in os.environ or shutil.which("srun") is None:
        raise ConfigError(
            f"runtime.nodes: {count} nodes need a SLURM job with as many. Use profiles/slurm, or set runtime.nodes: 1"
        )
    os.environ[PORT], os.environ[TOKEN] = str(_free_port()), secrets.token_hex(16)
    command = ["srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", f"--cpus-per-task={cpus}"]
    # a launcher that has saved and exits must not cause SLURM to kill the others while they save
    command.append("--kill-on-bad-exit=0")
    # with a snapshot of the code, the current folder must not be imported from
    python = [sys.executable, *(["-P"] if sys.flags.safe_path else [])]
    os.execvp("srun", [*command, *python, "-m", "workflow_lib", *sys.argv[1:]])


def endpoint(environ: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Return the address and port on which the launcher of the first node listens: where the job was started."""
    return environ["SLURM_LAUNCH_NODE_IPADDR"], int(environ[PORT])


def described(numbers: Sequence[int], environ: Mapping[str, str] = os.environ) -> str:
    """Return the nodes as text for a message, with their names if SLURM knows them: `node 1 (n2)`."""
    listed = environ.get("SLURM_STEP_NODELIST")
    names = (job.scontrol("show", "hostnames", listed) or "").split() if listed else []
    return ", ".join(f"node {at} ({names[at]})" if at < len(names) else f"node {at}" for at in numbers)


def token(environ: Mapping[str, str] = os.environ) -> str:
    """Return the secret that only the processes of the job know."""
    return environ[TOKEN]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
        return port
