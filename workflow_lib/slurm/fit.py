"""Which requests a cluster can never grant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from workflow_lib.config.messages import nearest
from workflow_lib.slurm.cluster import Cluster, Node, Partition
from workflow_lib.slurm.requests import TRAININGS, Request
from workflow_lib.text import count


def problems(asked: Iterable[Request], cluster: Cluster) -> list[str]:
    """A message for each request that is never granted: the rule, what it asks, what there is, what to change where."""
    here = [one for one in asked if not one.is_elsewhere]
    return [f"{one.rule}: {what}" for one in here for what in (*_lacking_ranks(one), *_problems(one, cluster))]


def _lacking_ranks(one: Request) -> Iterator[str]:
    if isinstance(one.gpus, int) and 0 < one.gpus < one.ranks:
        yield (
            f"asks for {count(one.gpus, 'GPU')} on a node for {one.ranks} processes (runtime.nproc), one each;"
            f" {_change(one, 'gres', 'gpu')}, or runtime.nproc"
        )


def _problems(one: Request, cluster: Cluster) -> list[str]:
    """Of several partitions to choose from, one that fits is enough."""
    there = f"there are: {', '.join(cluster)}; {_change(one, 'slurm_partition')}"
    default = [partition.name for partition in cluster.values() if partition.is_default]
    names = one.partition.split(",") if one.partition else default
    if not names:
        return [f"asks for no partition, and the cluster has no default one; {there}"]
    if unknown := [name for name in names if name not in cluster]:
        return [f"asks for the partition `{unknown[0]}`, which is not there{nearest(unknown[0], cluster)}; {there}"]
    found = [list(_misfits(one, cluster[name], cluster)) for name in names]
    return found[0] if all(found) else []


def _change(one: Request, *keys: str) -> str:
    """What to change: the first of the resources that was written somewhere, or else the first."""
    place = next((one.places[key] for key in keys if key in one.places), None)
    return f"change {place}" if place else f"set `{keys[0]}` of {one.rule} in the profile (set-resources.{one.rule})"


def _misfits(one: Request, partition: Partition, cluster: Cluster) -> Iterator[str]:
    nodes, of_it = partition.nodes, f"of `{partition.name}`"
    if partition.state != "UP" or not nodes:
        up = ", ".join(other.name for other in cluster.values() if other.state == "UP" and other.nodes)
        state = {"UP": "has no nodes", "DOWN": "is down: it starts no jobs"}.get(
            partition.state, f"is in state {partition.state}: it takes no jobs"
        )
        yield (
            f"asks for the partition `{partition.name}`, which {state}; up are: {up or 'none'};"
            f" {_change(one, 'slurm_partition')}, or wait"
        )
    longest = None if one.has_qos else partition.max_minutes
    if isinstance(one.minutes, int) and longest is not None and one.minutes > longest:
        goes_on = " (a longer training goes on in further jobs)" if one.rule in TRAININGS else ""
        yield (f"asks for {one.minutes} minutes {of_it}, which allows {longest:g}; {_change(one, 'runtime')}{goes_on}")
    if not nodes:
        return
    lacking = [*_lacking_gpus(one, partition), *_too_large(one, partition)]
    yield from lacking
    fitting = sum(_fits(one, node) for node in nodes)
    if not lacking and not fitting:
        yield (
            f"asks for {_shown(one)} on a node {of_it}, and none has all of that at once;"
            f" {_change(one, 'slurm_partition')}, or ask for less"
        )
        return
    most = min(fitting, fitting if one.has_qos else partition.max_nodes or fitting)
    if fitting and isinstance(one.nodes, int) and one.nodes > most:
        limit = f" and a job gets at most {most}" if most < fitting else ""
        yield (
            f"asks for {count(one.nodes, 'node')} {of_it} with {_shown(one)} each; it has {fitting} such"
            f"{limit}; {_change(one, 'nodes')}, or the partition"
        )


def _lacking_gpus(one: Request, partition: Partition) -> Iterator[str]:
    most = max(node.gpus_of(one.gpu_model) for node in partition.nodes)
    if one.gpu_model and not most:
        models = sorted({model or "(no type)" for node in partition.nodes for model in node.gpus})
        yield (
            f"asks for GPUs of the type `{one.gpu_model}` in `{partition.name}`{nearest(one.gpu_model, models)};"
            f" it has: {', '.join(models) or 'no GPUs'}; {_change(one, 'gpu_model', 'gres')}, or the partition"
        )
    elif isinstance(one.gpus, int) and one.gpus > most:
        model = f" of the type `{one.gpu_model}`" if one.gpu_model else ""
        yield (
            f"asks for {count(one.gpus, 'GPU')}{model} on a node of `{partition.name}`, whose nodes have at most"
            f" {most}; {_change(one, 'gres', 'gpu')}, or the partition"
        )


def _too_large(one: Request, partition: Partition) -> Iterator[str]:
    for asked, most, unit, keys in (
        (one.cpus, max(n.cpus for n in partition.nodes), "CPUs", ("cpus_per_task", "cpus_per_gpu", "threads")),
        (one.mem_mb, max(n.mem_mb for n in partition.nodes), "MB of memory", ("mem_mb_per_cpu", "mem_mb", "mem")),
    ):
        if isinstance(asked, int) and asked > most:
            yield (
                f"asks for {asked} {unit} on a node of `{partition.name}`, which gives at most {most};"
                f" {_change(one, *keys)}, or the partition"
            )


def _fits(one: Request, node: Node) -> bool:
    pairs = ((one.gpus, node.gpus_of(one.gpu_model)), (one.cpus, node.cpus), (one.mem_mb, node.mem_mb))
    return all(asked <= has for asked, has in pairs if isinstance(asked, int))


def _shown(one: Request) -> str:
    model = f" {one.gpu_model}" if one.gpu_model else ""
    return f"{one.gpus}{model} GPUs, {one.cpus} CPUs and {one.mem_mb} MB"
