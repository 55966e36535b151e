"""The requests of an experiment's jobs, compared with the cluster before anything is queued."""

from __future__ import annotations

from collections.abc import Sequence

from workflow_lib.errors import ConfigError
from workflow_lib.slurm.cluster import Ask, read_cluster, scontrol
from workflow_lib.slurm.fit import problems
from workflow_lib.slurm.profile import read_profile
from workflow_lib.slurm.requests import Request, asked_by, requests
from workflow_lib.text import aligned

__all__ = ["asked_by", "check", "read_profile", "requests", "table"]

COLUMNS = ("rule", "jobs", "partition", "nodes", "GPUs", "CPUs", "memory MB", "minutes", "GPU-hours")


def table(asked: Sequence[Request]) -> str:
    """Return the requests as a table: one line for each rule, and the totals."""
    hours = [request.gpu_hours for request in asked]
    known = sum(value for value in hours if value is not None)
    last = ["all", str(sum(request.jobs for request in asked)), *[""] * (len(COLUMNS) - 3), f"{known:.1f}"]
    rows = [list(COLUMNS), *(_row(request) for request in asked), last]
    right = [place for place, column in enumerate(COLUMNS) if column not in ("rule", "partition")]
    return "\n".join(
        [
            "requests of the jobs on their first try, if no results exist yet (GPUs, CPUs and memory per node)",
            "",
            *aligned(rows, right),
            "",
            "GPU-hours: jobs x nodes x GPUs x minutes, the upper limit; most jobs end earlier"
            + (" (`?`: a number could not be parsed)" if None in hours else ""),
            "a training that is preempted, or takes longer than its minutes, continues in another job of equal length",
        ]
    )


def _row(request: Request) -> list[str]:
    hours = "?" if request.gpu_hours is None else f"{request.gpu_hours:.1f}"
    gpus = f"{request.gpus} {request.gpu_model or ''}".strip()
    of_a_node = (gpus, request.cpus, request.mem_mb)
    cells = (request.jobs, request.partition or "(default)", request.nodes, *of_a_node, request.minutes)
    return [request.rule, *("-" if cell is None else str(cell) for cell in cells), hours]


def check(asked: Sequence[Request], ask: Ask = scontrol) -> str:
    """Return the result of the check in one line. Raises ConfigError with all requests that are never granted."""
    try:
        cluster = read_cluster(*(ask(["--all", "--oneliner", "show", what]) for what in ("partition", "node")))
    except LookupError as reason:
        return f"NOT CHECKED against the cluster: {reason}"
    if found := problems(asked, cluster):
        raise ConfigError("\n".join(found))
    return f"checked: the cluster ({', '.join(cluster)}) can grant all requests"
