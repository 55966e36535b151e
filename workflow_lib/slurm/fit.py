"""Requests that a cluster can never grant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from workflow_lib.slurm.cluster import Cluster, Node, Partition
from workflow_lib.slurm.requests import TRAININGS, Request
from workflow_lib.text import count, joined, nearest


def problems(asked: Iterable[Request], cluster: Cluster) -> list[str]:
    """Return a message for each request that is never granted: the rule, its request, the limit, and what to change."""
    here = [request for request in asked if not request.is_elsewhere]
    return [
        f"{request.rule}: {problem}"
        for request in here
        for problem in (*_lacking_ranks(request), *_lacking_time(request), *_problems(request, cluster))
    ]


def _lacking_ranks(request: Request) -> Iterator[str]:
    if isinstance(request.gpus, int) and 0 < request.gpus < request.ranks:
        yield (
            f"asks for {count(request.gpus, 'GPU')} on a node for {request.ranks} processes (runtime.nproc), one each;"
            f" {_change(request, 'gres', 'gpu')}, or runtime.nproc"
        )


def _lacking_time(request: Request) -> Iterator[str]:
    least = request.least_minutes
    if least is not None and isinstance(request.minutes, int) and request.minutes < least:
        yield (
            f"asks for {request.minutes} minutes (runtime), and for no fewer than {least:g} (--time-min), which SLURM"
            f" rejects; {_change(request, 'slurm_extra')}, or runtime"
        )


def _problems(request: Request, cluster: Cluster) -> list[str]:
    """Return the problems of the first partition; none if any partition that the request names fits."""
    there = f"the partitions are: {', '.join(cluster)}; {_change(request, 'slurm_partition')}"
    default = [partition.name for partition in cluster.values() if partition.is_default]
    names = request.partition.split(",") if request.partition else default
    if not names:
        return [f"asks for no partition, and the cluster has no default one; {there}"]
    if unknown := [name for name in names if name not in cluster]:
        problem = f"asks for the partition `{unknown[0]}`, which does not exist{nearest(unknown[0], cluster)}"
        return [joined(problem, there)]
    found = [list(_misfits(request, cluster[name], cluster)) for name in names]
    return found[0] if all(found) else []


def _change(request: Request, *keys: str) -> str:
    """Return the advice of a message: the place of the first of these resources that is set, or where to set one."""
    place = next((request.places[key] for key in keys if key in request.places), None)
    rule = request.rule
    return f"change {place}" if place else f"set `{keys[0]}` of {rule} in the profile (set-resources.{rule})"


def _misfits(request: Request, partition: Partition, cluster: Cluster) -> Iterator[str]:
    nodes, of_it = partition.nodes, f"of `{partition.name}`"
    if partition.state != "UP" or not nodes:
        up = ", ".join(other.name for other in cluster.values() if other.state == "UP" and other.nodes)
        state = {"UP": "has no nodes", "DOWN": "is down: it starts no jobs"}.get(
            partition.state, f"is in state {partition.state}: it takes no jobs"
        )
        yield (
            f"asks for the partition `{partition.name}`, which {state}; partitions that are up: {up or 'none'};"
            f" {_change(request, 'slurm_partition')}, or wait"
        )
    longest = None if request.has_qos else partition.max_minutes
    if isinstance(request.minutes, int) and longest is not None and request.minutes > longest:
        goes_on = " (a longer training continues in another job)" if request.rule in (*TRAININGS, "pack") else ""
        yield (
            f"asks for {request.minutes} minutes {of_it}, which allows {longest:g};"
            f" {_change(request, 'runtime')}{goes_on}"
        )
    if not nodes:
        return
    lacking = [*_lacking_gpus(request, partition), *_too_large(request, partition)]
    yield from lacking
    fitting = sum(_fits(request, node) for node in nodes)
    if not lacking and not fitting:
        yield (
            f"asks for {_shown(request)} on a node {of_it}, and none has all of that at once;"
            f" {_change(request, 'slurm_partition')}, or ask for less"
        )
        return
    # a quality of service may allow more nodes than the partition
    most = min(fitting, fitting if request.has_qos else partition.max_nodes or fitting)
    if fitting and isinstance(request.nodes, int) and request.nodes > most:
        limit = f" and a job gets at most {most}" if most < fitting else ""
        yield (
            f"asks for {count(request.nodes, 'node')} {of_it} with {_shown(request)} each; it has {fitting} such"
            f"{limit}; {_change(request, 'nodes')}, or the partition"
        )


def _lacking_gpus(request: Request, partition: Partition) -> Iterator[str]:
    most = max(node.gpus_of(request.gpu_model) for node in partition.nodes)
    if request.gpu_model and not most:
        models = sorted({model or "(no type)" for node in partition.nodes for model in node.gpus})
        yield joined(
            f"asks for GPUs of the type `{request.gpu_model}` in `{partition.name}`"
            f"{nearest(request.gpu_model, models)}",
            f"it has: {', '.join(models) or 'no GPUs'}; {_change(request, 'gpu_model', 'gres')}, or the partition",
        )
    elif isinstance(request.gpus, int) and request.gpus > most:
        model = f" of the type `{request.gpu_model}`" if request.gpu_model else ""
        yield (
            f"asks for {count(request.gpus, 'GPU')}{model} on a node of `{partition.name}`, whose nodes have at most"
            f" {most}; {_change(request, 'gres', 'gpu')}, or the partition"
        )


def _too_large(request: Request, partition: Partition) -> Iterator[str]:
    for asked, most, unit, keys in (
        (request.cpus, max(n.cpus for n in partition.nodes), "CPUs", ("cpus_per_task", "cpus_per_gpu", "threads")),
        (request.mem_mb, max(n.mem_mb for n in partition.nodes), "MB of memory", ("mem_mb_per_cpu", "mem_mb", "mem")),
    ):
        if isinstance(asked, int) and asked > most:
            yield (
                f"asks for {asked} {unit} on a node of `{partition.name}`, which gives at most {most};"
                f" {_change(request, *keys)}, or the partition"
            )


def _fits(request: Request, node: Node) -> bool:
    pairs = ((request.gpus, node.gpus_of(request.gpu_model)), (request.cpus, node.cpus), (request.mem_mb, node.mem_mb))
    return all(asked <= has for asked, has in pairs if isinstance(asked, int))


def _shown(request: Request) -> str:
    model = f" {request.gpu_model}" if request.gpu_model else ""
    return f"{request.gpus}{model} GPUs, {request.cpus} CPUs and {request.mem_mb} MB"
