"""What the jobs of each rule ask for."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workflow_lib import config, plan
from workflow_lib.slurm.profile import Profile, read_profile

TRAININGS = ("train", "trial")
MINUTES = {"s": 1 / 60, "m": 1, "h": 60, "d": 1440, "w": 10080}
MEGABYTES = {"k": 1e-3, "m": 1, "g": 1e3, "t": 1e6}

Number = int | str | None  # as text where it could not be read
Job = tuple[str, int, Mapping[str, Any], int]


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
    return replace(one, places=places, ranks=0 if runtime.device == "cpu" else runtime.nproc)


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
