"""Resources that the jobs of each rule request from SLURM."""

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
from workflow_lib.plan import packing
from workflow_lib.slurm.profile import Profile, read_profile

TRAININGS = ("train", "trial")
MINUTES = {"s": 1 / 60, "m": 1, "h": 60, "d": 1440, "w": 10080}
MEGABYTES = {"k": 1e-3, "m": 1, "g": 1e3, "t": 1e6}

Number = int | str | None  # text if it could not be parsed
Job = tuple[str, int, Mapping[str, Any], int]  # of Snakemake: rule, number of jobs, resources, threads


@dataclass(frozen=True)
class Request:
    """The request of each job of a rule. GPUs, CPUs and memory are those of one node."""

    rule: str
    jobs: int
    partition: str | None
    nodes: Number
    gpus: Number
    gpu_model: str | None
    cpus: Number
    mem_mb: Number
    minutes: Number
    least_minutes: float | None = None  # to which SLURM may shorten the job (--time-min)
    ranks: int = 0  # processes on a node, each of which needs a GPU if the node has any
    has_qos: bool = False  # a quality of service, which may lift the limits of partitions
    is_elsewhere: bool = False  # on another cluster, whose limits are not known here
    places: Mapping[str, str] = field(default_factory=dict)  # file and key that set each resource

    @property
    def gpu_hours(self) -> float | None:
        """GPU-hours of all jobs, if each uses its whole time; None if a number could not be parsed."""
        if self.gpus == 0:
            return 0.0
        if isinstance(self.gpus, int) and isinstance(self.nodes, int) and isinstance(self.minutes, int):
            return self.jobs * self.nodes * self.gpus * self.minutes / 60
        return None


def request(rule: str, jobs: int, asked: Mapping[str, Any], threads: Number) -> Request:
    """Return the SLURM request of a job with these resources, named as Snakemake names them.

    `gpu` counts the GPUs of a job, `gres` those of a node. A node runs one task, which gets all threads.
    """
    nodes, gpus, model = asked.get("nodes", 1), asked.get("gpu", 0), asked.get("gpu_model")
    # gpu, gpu:4, gpu:a100, gpu:a100:4; a type that begins with a digit, such as 1g.5gb, needs a number after it
    if gres := re.fullmatch(r"gpu(?::([A-Za-z][\w.]*|\w[\w.]*(?=:)))?(?::(\d+))?", str(asked.get("gres", ""))):
        gpus, model = int(gres[2] or 1), gres[1]
    elif isinstance(gpus, int) and isinstance(nodes, int):
        gpus = math.ceil(gpus / nodes)
    cpus = asked.get("cpus_per_task", threads)
    if isinstance(per_gpu := asked.get("cpus_per_gpu"), int) and isinstance(gpus, int) and gpus:
        cpus = per_gpu * gpus
    mem_mb = _quantity(asked.get("mem_mb", asked.get("mem")), MEGABYTES)
    if isinstance(per_cpu := asked.get("mem_mb_per_cpu"), int) and isinstance(cpus, int):
        mem_mb = per_cpu * cpus
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
        least_minutes=_least_minutes(str(asked.get("slurm_extra", ""))),
        has_qos="qos" in asked,
        is_elsewhere=any(asked.get(name) for name in ("cluster", "clusters", "slurm_cluster")),
    )


def _quantity(value: Any, units: Mapping[str, float]) -> Number:
    """Return megabytes or minutes, rounded up. Snakemake also accepts units: `12h`, `16GB`, `1.5 days`."""
    if isinstance(value, float):
        return math.ceil(value)
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z])[a-z]*", str(value).lower())
    if match and match[2] in units:
        return math.ceil(float(match[1]) * units[match[2]])
    return value if value is None or isinstance(value, int) else str(value)


def _least_minutes(options: str) -> float | None:
    """Return the time of the option `--time-min` of sbatch: minutes, `m:s`, `h:m:s`, `d-h`, `d-h:m` or `d-h:m:s`."""
    if not (match := re.search(r"--time-min[= ]((?:(\d+)-)?(\d+(?::\d+){0,2}))(?!\S)", options)):
        return None
    numbers = [float(number) for number in match[3].split(":")]
    if match[2] is None and len(numbers) < 3:
        numbers.insert(0, 0.0)
    hours, minutes, seconds = [*numbers, 0.0, 0.0][:3]
    return int(match[2] or 0) * 1440 + hours * 60 + minutes + seconds / 60


def job_counts(experiment: config.Experiment) -> dict[str, int]:
    """Return the number of cluster jobs of each rule if no results exist yet."""
    runs = plan.expand(experiment)
    data = {run.data_id for run in runs}
    packed = _packs(experiment, runs)
    single = len(runs) - sum(len(pack.runs) for pack in packed)
    counts = {"preprocess": len(data), "pack": len(packed), "trial": 0, "train": single}
    if experiment.tune is not None:  # the best trial is trained again, as the run `tuned`
        counts["preprocess"] = len(data | {plan.data_id(experiment)})
        counts["trial"] = 0 if any(pack.study for pack in packed) else experiment.tune.trials
        counts["train"] = single + 1
    counts |= dict.fromkeys(("evaluate", "export"), counts["train"])
    return {rule: jobs for rule, jobs in counts.items() if jobs}


def _packs(experiment: config.Experiment, runs: Iterable[plan.Run]) -> list[plan.Pack]:
    """Return the packs that cluster jobs train."""
    if not packing.is_wanted(experiment) or packing.obstacle(experiment, is_cluster=True):
        return []
    study = packing.study_pack(experiment)
    return [*plan.packs(experiment, runs).values(), *([study] if study else [])]


def requests(experiment: config.Experiment, profile: Profile) -> list[Request]:
    """Return the requests of the experiment's jobs on their first try."""
    found = []
    for rule, jobs in job_counts(experiment).items():
        asked, threads = profile.asked(rule), 1
        if rule in TRAININGS:
            threads = experiment.runtime.nproc * experiment.runtime.threads
            asked |= {"nodes": experiment.runtime.nodes}
        found.append(placed(request(rule, jobs, asked, asked.get("threads", threads)), experiment, profile))
    return found


def placed(requested: Request, experiment: config.Experiment, profile: Profile | None) -> Request:
    """Return the request with the lines of both files that set it, and the number of ranks on a node."""
    places = profile.places(requested.rule) if profile else {}
    requested = replace(requested, has_qos=requested.has_qos or bool(profile and profile.values.get("slurm-qos")))
    if requested.rule not in TRAININGS:
        return replace(requested, places=places)
    runtime = experiment.runtime
    for key, setting in (("threads", "nproc"), ("nodes", "nodes")):
        origin = experiment._origins.of(("runtime", setting))
        places.setdefault(key, f"{origin + ' ' if origin else ''}runtime.{setting}")
    return replace(requested, places=places, ranks=0 if runtime.device == "cpu" else runtime.nproc)


def asked_by(jobs: Iterable[Job], experiment: config.Experiment, command: Sequence[str]) -> list[Request]:
    """Return the requests of the jobs that this Snakemake is about to submit."""
    profile = _profile_of(command)
    return [placed(request(rule, count, its, threads), experiment, profile) for rule, count, its, threads in jobs]


def _profile_of(command: Sequence[str]) -> Profile | None:
    """Return the last profile on a Snakemake command line; None if it is not a path."""
    names = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    names.add_argument("--profile", action="append", default=[os.environ.get("SNAKEMAKE_PROFILE", "none")])
    path = Path(names.parse_known_args(command)[0].profile[-1])
    return read_profile(path) if path.exists() else None
