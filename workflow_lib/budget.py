"""What the jobs of an experiment ask of a cluster, held against what the cluster has, before anything is queued."""

from __future__ import annotations

import argparse
import ast
import math
import operator
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from workflow_lib import config, plan
from workflow_lib.config.problems import nearest
from workflow_lib.config.yaml12 import Origins, parse_yaml
from workflow_lib.errors import ConfigError

# The names that a profile's file may have.
PROFILE_NAMES = ("profile.v9+.yaml", "profile.yaml", "config.v9+.yaml", "config.yaml")
TRAININGS = ("train", "trial")
COLUMNS = ("rule", "jobs", "partition", "nodes", "GPUs", "CPUs", "memory MB", "minutes", "GPU-hours")

Ask = Callable[[Sequence[str]], str]
Number = int | str | None  # as text where it could not be read


@dataclass(frozen=True)
class Request:
    """What each job of a rule asks for. GPUs, CPUs and memory are those of one node."""

    rule: str
    jobs: int
    partition: str | None
    nodes: Number
    gpus: Number
    gpu_model: str | None
    cpus: Number
    mem_mb: Number
    minutes: Number
    ranks: int = 0  # of a node, each of which wants a GPU if there are any
    has_qos: bool = False  # a quality of service, which may lift the limits of partitions
    is_elsewhere: bool = False  # on another cluster, of which nothing is known here
    places: Mapping[str, str] = field(default_factory=dict)  # where each resource was written

    @property
    def gpu_hours(self) -> float | None:
        """Of all jobs, if each takes its whole time; None when a number is unreadable."""
        if self.gpus == 0:
            return 0.0
        if isinstance(self.gpus, int) and isinstance(self.nodes, int) and isinstance(self.minutes, int):
            return self.jobs * self.nodes * self.gpus * self.minutes / 60
        return None


@dataclass(frozen=True)
class Node:
    """A node, within the limits of one of its partitions."""

    cpus: int
    mem_mb: int
    gpus: Mapping[str, int]  # by type, the type "" where SLURM was not told any

    def gpus_of(self, model: str | None) -> int:
        """Its GPUs of the type, or all."""
        return sum(self.gpus.values()) if model is None else self.gpus.get(model, 0)


@dataclass(frozen=True)
class Partition:
    """A partition; None is no limit."""

    name: str
    state: str
    is_default: bool
    max_minutes: float | None
    max_nodes: int | None
    nodes: tuple[Node, ...]


Cluster = Mapping[str, Partition]


# -- the cluster ----------------------------------------------------------------------------------------------------


def _scontrol(arguments: Sequence[str]) -> str:
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
    """The cluster in what `scontrol --oneliner show partition` and `... show node` print."""
    machines = [_facts(line) for line in nodes.splitlines() if line.startswith("NodeName=")]
    found = [_facts(line) for line in partitions.splitlines() if line.startswith("PartitionName=")]
    return {facts["PartitionName"]: _partition(facts, machines) for facts in found}


def _facts(line: str) -> dict[str, str]:
    return {key: value for key, is_fact, value in (word.partition("=") for word in line.split()) if is_fact}


def _partition(facts: Mapping[str, str], machines: Iterable[Mapping[str, str]]) -> Partition:
    name = facts["PartitionName"]
    own = [one for one in machines if name in one.get("Partitions", "").split(",")]
    cpus, mem_mb = _limit(facts.get("MaxCPUsPerNode")), _limit(facts.get("MaxMemPerNode"))
    return Partition(
        name=name,
        state=facts["State"],
        is_default=facts["Default"] == "YES",
        max_minutes=_slurm_minutes(facts["MaxTime"]),
        max_nodes=_limit(facts.get("MaxNodes")),
        nodes=tuple(
            Node(
                cpus=min(int(one.get("CPUEfctv", one["CPUTot"])), cpus or sys.maxsize),
                mem_mb=min(int(one["RealMemory"]), mem_mb or sys.maxsize),
                gpus=_gpus_of(one.get("Gres", "")),
            )
            for one in own
        ),
    )


def _limit(text: str | None) -> int | None:
    """A number; None for UNLIMITED, and for 0, which means the same."""
    return int(text) or None if text and text.isdecimal() else None


def _slurm_minutes(text: str) -> float | None:
    """Minutes in days-hours:minutes:seconds; None for UNLIMITED."""
    if not (match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)):
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes + seconds / 60


def _gpus_of(gres: str) -> dict[str, int]:
    """GPUs by type in a text such as `gpu:a100:4(S:0-1),nvme:1`."""
    found: dict[str, int] = {}
    for word in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *rest = word.split(":")
        if name == "gpu" and rest:
            model = rest[0].lower() if len(rest) == 2 else ""
            found[model] = found.get(model, 0) + int(rest[-1])
    return found


# -- what is asked --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """A profile's file: its settings, and the line of each."""

    path: Path
    values: Mapping[str, Any]
    origins: Origins

    def asked(self, rule: str) -> dict[str, Any]:
        """The resources of a rule on its first try, as Snakemake names them, and `threads`."""
        found = self._section("default-resources") | self._section("set-resources", rule)
        if rule in (threads := self._section("set-threads")):
            found["threads"] = threads[rule]
        return {key: evaluated(value, {"attempt": 1}) for key, value in found.items()}

    def places(self, rule: str) -> dict[str, str]:
        """File, line and key of each of them."""
        sections = (("default-resources",), ("set-resources", rule))
        paths = {key: (*section, key) for section in sections for key in self._section(*section)}
        if rule in self._section("set-threads"):
            paths["threads"] = ("set-threads", rule)
        return {key: f"{self.origins.of(path)} {'.'.join(path)}" for key, path in paths.items()}

    def _section(self, *path: str) -> dict[str, Any]:
        found: Any = self.values
        for part in path:
            found = _mapping(found).get(part)
        return _mapping(found)


def _mapping(value: Any) -> dict[str, Any]:
    """The mapping, also when it is written as a list of `name=value` or `rule:name=value`."""
    if not isinstance(value, list):
        return dict(value or {})
    found: dict[str, Any] = {}
    for item in value:
        name, _, text = str(item).partition("=")
        rule, _, key = name.rpartition(":")
        (found.setdefault(rule, {}) if rule else found)[key] = parse_yaml(text, str(item))[0]
    return found


def read_profile(path: Path) -> Profile:
    """The profile in a folder or file."""
    files = [path / name for name in PROFILE_NAMES] if path.is_dir() else [path]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        there = ", ".join(sorted(str(found.parent) for found in Path("profiles").glob("*/*.yaml")))
        raise ConfigError(f"--profile {path}: no profile is there; here are: {there or 'none'}")
    values, origins = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: a profile is a mapping of Snakemake's options (name: value)")
    return Profile(file, values, Origins(origins))


OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
FUNCTIONS: Mapping[str, Callable[..., float]] = {"min": min, "max": max, "int": int, "round": round}


def evaluated(text: Any, names: Mapping[str, int]) -> Any:
    """The value of a profile's expression such as `4000 * attempt`; the text itself when it is not arithmetic."""
    if not isinstance(text, str):
        return text
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return tree.value if _is_text(tree) else _arithmetic(tree, names)
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError):
        return text


def _is_text(node: ast.expr) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _arithmetic(node: ast.expr, names: Mapping[str, int]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](_arithmetic(left, names), _arithmetic(right, names))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_arithmetic(operand, names)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*(_arithmetic(argument, names) for argument in arguments))
    raise ValueError(ast.dump(node))


def request(rule: str, jobs: int, asked: Mapping[str, Any], threads: Number) -> Request:
    """What a job with these resources, as Snakemake names them, asks of SLURM.

    `gpu` counts the GPUs of a job, `gres` those of a node; each task has all the threads.
    """
    nodes, gpus, model = asked.get("nodes", 1), asked.get("gpu", 0), asked.get("gpu_model")
    if gres := re.fullmatch(r"gpu(?::([A-Za-z][\w.]*|\w[\w.]*(?=:)))?(?::(\d+))?", str(asked.get("gres", ""))):
        gpus, model = int(gres[2] or 1), gres[1]
    elif isinstance(gpus, int) and isinstance(nodes, int):
        gpus = math.ceil(gpus / nodes)
    cpus = asked.get("cpus_per_task", threads)
    if isinstance(of_gpu := asked.get("cpus_per_gpu"), int) and isinstance(gpus, int) and gpus:
        cpus = of_gpu * gpus
    mem_mb = _quantity(asked.get("mem_mb", asked.get("mem")), MEGABYTES)
    if isinstance(of_cpu := asked.get("mem_mb_per_cpu"), int) and isinstance(cpus, int):
        mem_mb = of_cpu * cpus
    return Request(
        rule=rule,
        jobs=jobs,
        partition=asked.get("slurm_partition"),
        nodes=nodes,
        gpus=gpus,
        gpu_model=str(model).lower() if model else None,
        cpus=cpus,
        mem_mb=mem_mb,
        minutes=_quantity(asked.get("runtime"), MINUTES),
        has_qos="qos" in asked,
        is_elsewhere=any(asked.get(name) for name in ("cluster", "clusters", "slurm_cluster")),
    )


MINUTES = {"s": 1 / 60, "m": 1, "h": 60, "d": 1440, "w": 10080}
MEGABYTES = {"k": 1e-3, "m": 1, "g": 1e3, "t": 1e6}


def _quantity(value: Any, units: Mapping[str, float]) -> Number:
    """A whole number; Snakemake also takes one with a unit, such as `12h` or `16GB`."""
    if isinstance(value, float):
        return math.ceil(value)
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z])[a-z]*", str(value).lower())
    if match and match[2] in units:
        return math.ceil(float(match[1]) * units[match[2]])
    return value if value is None or isinstance(value, int) else str(value)


def job_counts(experiment: config.Experiment) -> dict[str, int]:
    """How many jobs of each rule go to the cluster, were nothing made yet."""
    runs = plan.expand(experiment)
    data = {run.data_id for run in runs}
    if experiment.tune is None:
        return dict.fromkeys(("train", "evaluate", "export"), len(runs)) | {"preprocess": len(data)}
    with_tuned = dict.fromkeys(("train", "evaluate", "export"), len(runs) + 1)
    return {
        "preprocess": len(data | {plan.data_id(experiment)}),
        "trial": experiment.tune.trials,
        **with_tuned,
    }


def requests(experiment: config.Experiment, profile: Profile) -> list[Request]:
    """What the experiment's jobs ask for on their first try."""
    found = []
    for rule, jobs in job_counts(experiment).items():
        asked, threads = profile.asked(rule), 1
        if rule in TRAININGS:
            threads = experiment.runtime.nproc * experiment.runtime.threads
            asked |= {"nodes": experiment.runtime.nodes}
        found.append(placed(request(rule, jobs, asked, asked.get("threads", threads)), experiment, profile))
    return found


def placed(one: Request, experiment: config.Experiment, profile: Profile | None) -> Request:
    """The request, and what the two files say of it: where it was written, and how many ranks share a node."""
    places = profile.places(one.rule) if profile else {}
    one = replace(one, has_qos=one.has_qos or bool(profile and profile.values.get("slurm-qos")))
    if one.rule not in TRAININGS:
        return replace(one, places=places)
    runtime = experiment.runtime
    for key, setting in (("threads", "nproc"), ("nodes", "nodes")):
        origin = experiment._origins.of(("runtime", setting))
        places.setdefault(key, f"{origin + ' ' if origin else ''}runtime.{setting}")
    return replace(one, places=places, ranks=0 if runtime.device in ("cpu", "mps") else runtime.nproc)


# -- what does not fit ----------------------------------------------------------------------------------------------


def problems(asked: Iterable[Request], cluster: Cluster) -> list[str]:
    """A message for each request that is never granted: the rule, what it asks, what there is, what to change where."""
    here = [one for one in asked if not one.is_elsewhere]
    return [f"{one.rule}: {what}" for one in here for what in (*_lacking_ranks(one), *_problems(one, cluster))]


def _lacking_ranks(one: Request) -> Iterator[str]:
    if isinstance(one.gpus, int) and 0 < one.gpus < one.ranks:
        yield (
            f"asks for {plan.count(one.gpus, 'GPU')} on a node for {one.ranks} processes (runtime.nproc), one each;"
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
            f"asks for {plan.count(one.nodes, 'node')} {of_it} with {_shown(one)} each; it has {fitting} such"
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
            f"asks for {plan.count(one.gpus, 'GPU')}{model} on a node of `{partition.name}`, whose nodes have at most"
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


# -- for people -----------------------------------------------------------------------------------------------------


def table(asked: Sequence[Request]) -> str:
    """The requests, a rule a line, and their sums."""
    hours = [one.gpu_hours for one in asked]
    known = sum(hour for hour in hours if hour is not None)
    last = ["all", str(sum(one.jobs for one in asked)), *[""] * (len(COLUMNS) - 3), f"{known:.1f}"]
    rows = [list(COLUMNS), *(_row(one) for one in asked), last]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = (COLUMNS.index("rule"), COLUMNS.index("partition"))
    padded = [[cell if i in left else cell.rjust(widths[i]) for i, cell in enumerate(row)] for row in rows]
    return "\n".join(
        [
            "what jobs ask for on their first try, were nothing made yet (GPUs, CPUs and memory: of a node)",
            "",
            *plan.aligned(padded),
            "",
            "GPU-hours: jobs x GPUs x minutes, the most that these jobs can take; most end earlier"
            + (" (where `?` stands, a number could not be read)" if None in hours else ""),
            "a training that is preempted, or longer than its minutes, goes on in a further job of as many minutes",
        ]
    )


def _row(one: Request) -> list[str]:
    hours = "?" if one.gpu_hours is None else f"{one.gpu_hours:.1f}"
    gpus = f"{one.gpus} {one.gpu_model or ''}".strip()
    cells = (one.jobs, one.partition or "(default)", one.nodes, gpus, one.cpus, one.mem_mb, one.minutes)
    return [one.rule, *("-" if cell is None else str(cell) for cell in cells), hours]


def check(asked: Sequence[Request], ask: Ask = _scontrol) -> str:
    """A line that says what came of the check; ConfigError has every request that the cluster can never grant."""
    try:
        cluster = read_cluster(*(ask(["--all", "--oneliner", "show", what]) for what in ("partition", "node")))
    except LookupError as reason:
        return f"NOT CHECKED against the cluster: {reason}"
    if found := problems(asked, cluster):
        raise ConfigError("\n".join(found))
    return f"checked: the cluster ({', '.join(cluster)}) has all that these jobs ask for"


Job = tuple[str, int, Mapping[str, Any], int]


def asked_by(jobs: Iterable[Job], experiment: config.Experiment, command: Sequence[str]) -> list[Request]:
    """What the jobs ask for that this Snakemake is about to submit: rule, number, resources and threads of each."""
    profile = _profile_of(command)
    return [placed(request(rule, count, its, threads), experiment, profile) for rule, count, its, threads in jobs]


def _profile_of(command: Sequence[str]) -> Profile | None:
    """The last profile of a Snakemake's command line, where that is a path."""
    names = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    names.add_argument("--profile", action="append", default=[os.environ.get("SNAKEMAKE_PROFILE", "none")])
    path = Path(names.parse_known_args(command)[0].profile[-1])
    return read_profile(path) if path.exists() else None
