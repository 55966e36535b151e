"""The partitions and nodes of a cluster, as its controller reports them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

Ask = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Node:
    """The resources of a node that a job in one of its partitions can get."""

    cpus: int
    mem_mb: int
    gpus: Mapping[str, int]  # number by type; the type is "" if the cluster names none

    def gpus_of(self, model: str | None) -> int:
        """Return the number of GPUs of the type, or of all GPUs."""
        return sum(self.gpus.values()) if model is None else self.gpus.get(model, 0)


@dataclass(frozen=True)
class Partition:
    """A partition; a limit of None is no limit."""

    name: str
    state: str
    is_default: bool
    max_minutes: float | None
    max_nodes: int | None
    nodes: tuple[Node, ...]


Cluster = Mapping[str, Partition]


def scontrol(arguments: Sequence[str]) -> str:
    """Return the output of `scontrol`. Raises LookupError, with the reason, if it fails or does not answer."""
    if shutil.which("scontrol") is None:
        raise LookupError("there is no SLURM on this machine (no command `scontrol`)")
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=False, timeout=30)
    except subprocess.TimeoutExpired as error:
        raise LookupError(f"`scontrol {' '.join(arguments)}` does not answer within {error.timeout:g} s") from error
    if done.returncode != 0:
        raise LookupError(f"`scontrol {' '.join(arguments)}` says: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout


def read_cluster(partitions: str, nodes: str) -> Cluster:
    """Parse the output of `scontrol --oneliner show partition` and `... show node`."""
    machines = [_facts(line) for line in nodes.splitlines() if line.startswith("NodeName=")]
    found = [_facts(line) for line in partitions.splitlines() if line.startswith("PartitionName=")]
    return {facts["PartitionName"]: _partition(facts, machines) for facts in found}


def _facts(line: str) -> dict[str, str]:
    return {key: value for key, is_fact, value in (word.partition("=") for word in line.split()) if is_fact}


def _partition(facts: Mapping[str, str], machines: Iterable[Mapping[str, str]]) -> Partition:
    name = facts["PartitionName"]
    own = [machine for machine in machines if name in machine.get("Partitions", "").split(",")]
    cpus, mem_mb = _limit(facts.get("MaxCPUsPerNode")), _limit(facts.get("MaxMemPerNode"))
    return Partition(
        name=name,
        state=facts["State"],
        is_default=facts["Default"] == "YES",
        max_minutes=_slurm_minutes(facts["MaxTime"]),
        max_nodes=_limit(facts.get("MaxNodes")),
        nodes=tuple(
            Node(
                # CPUEfctv leaves out the CPUs that are reserved for the system; old versions of SLURM do not print it
                cpus=min(int(machine.get("CPUEfctv", machine["CPUTot"])), cpus or sys.maxsize),
                mem_mb=min(int(machine["RealMemory"]), mem_mb or sys.maxsize),
                gpus=_gpus_of(machine.get("Gres", "")),
            )
            for machine in own
        ),
    )


def _limit(text: str | None) -> int | None:
    """Return the number; None for UNLIMITED and for 0, which means the same."""
    return int(text) or None if text and text.isdecimal() else None


def _slurm_minutes(text: str) -> float | None:
    """Return the minutes of a time `days-hours:minutes:seconds`; None for UNLIMITED."""
    if not (match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)):
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes + seconds / 60


def _gpus_of(gres: str) -> dict[str, int]:
    """Return the number of GPUs by type, from a text such as `gpu:a100:4(S:0-1),nvme:1`."""
    found: dict[str, int] = {}
    # the sockets in parentheses may contain commas, as in gpu:2(S:0,1)
    for word in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *rest = word.split(":")
        if name == "gpu" and rest:
            model = rest[0].lower() if len(rest) == 2 else ""
            found[model] = found.get(model, 0) + int(rest[-1])
    return found
