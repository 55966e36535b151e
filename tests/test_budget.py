"""Requests that a cluster can never grant are named before anything is queued, with the place to change.

tests/recorded/ holds what `scontrol --oneliner show partition` and `... show node` printed on two real clusters: the
sandbox as it is shipped, and one with GPUs of two types, limits, and a partition that is drained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import ROOT
from workflow_lib import config
from workflow_lib.errors import ConfigError
from workflow_lib.slurm import budget
from workflow_lib.slurm.cluster import Cluster, read_cluster
from workflow_lib.slurm.fit import problems
from workflow_lib.slurm.profile import Profile, evaluated
from workflow_lib.slurm.requests import Request, job_counts, request


def cluster(name: str) -> Cluster:
    return read_cluster(*(recorded(name, what) for what in ("partitions", "nodes")))


def recorded(name: str, what: str) -> str:
    return (ROOT / "tests" / "recorded" / f"{name}-{what}.txt").read_text()


def profile(folder: Path, text: str) -> Profile:
    (folder / "config.yaml").write_text(text)
    return budget.read_profile(folder)


def experiment(**sections: Any) -> config.Experiment:
    return config.Experiment.model_validate({"name": "a", **sections})


def job(rule: str = "evaluate", threads: int = 1, **asked: Any) -> Request:
    return request(rule, 1, {"slurm_partition": "gpu", "runtime": 60, **asked}, threads)


def complaints(*asked: Request, to: str = "mixed") -> list[str]:
    return problems(asked, cluster(to))


# The cluster


def test_a_cluster_is_read_from_the_output_of_slurm() -> None:
    there = cluster("mixed")
    assert list(there) == ["gpu", "preempt", "cpu"]
    gpu, preempt, cpu = there.values()
    assert (gpu.state, preempt.state) == ("UP", "DRAIN")
    assert (gpu.max_minutes, preempt.max_minutes, cpu.max_minutes) == (480, 2 * 1440 + 750, None)
    assert (gpu.max_nodes, cpu.max_nodes) == (2, None)
    assert [dict(node.gpus) for node in preempt.nodes] == [{"a100": 2}, {"a100": 2}, {"v100": 1}, {}]
    assert {(node.cpus, node.mem_mb) for node in gpu.nodes} == {(2, 12000)}, "within the limits of the partition"
    assert [(node.cpus, node.mem_mb) for node in cpu.nodes] == [(8, 64000), (4, 16000)]
    assert [name for name, partition in cluster("sandbox").items() if partition.is_default] == ["cpu"]


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", {}),
        ("gpu:2", {"": 2}),
        ("gpu:A100:4(S:0-1)", {"a100": 4}),
        ("gpu:a100:4(S:0,1),nvme:1,gpu:v100:2", {"a100": 4, "v100": 2}),
        ("gpu:1g.5gb:7", {"1g.5gb": 7}),
    ],
)
def test_the_gpus_of_a_node_are_read_by_type(gres: str, gpus: dict[str, int]) -> None:
    nodes = re.sub(r"Gres=\S+", f"Gres={gres}", recorded("sandbox", "nodes"))
    assert read_cluster(recorded("sandbox", "partitions"), nodes)["gpu"].nodes[0].gpus == gpus


# Requests


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4000 * attempt", 8000),
        ("min(4000 * attempt, 7000) + 2", 7002),
        ("-(7 // 2) % 5", 2),
        ("'gpu:4'", "gpu:4"),
        (12, 12),
        ("a100", "a100"),
        ("gpu:a100:4", "gpu:a100:4"),
        ("12h", "12h"),
        ("9 ** 9 ** 9 ** 9", "9 ** 9 ** 9 ** 9"),
        ("__import__('os').getpid()", "__import__('os').getpid()"),
        ("max(1000, input.size_mb)", "max(1000, input.size_mb)"),
        ("1 / 0", "1 / 0"),
        ("(" * 500, "(" * 500),
    ],
)
def test_arithmetic_is_evaluated_and_anything_else_is_left_as_written(text: Any, value: Any) -> None:
    assert evaluated(text, {"attempt": 2}) == value


@pytest.mark.parametrize(
    ("asked", "gpus", "model"),
    [
        ({}, 0, None),
        ({"gpu": 4}, 4, None),
        ({"gpu": 4, "nodes": 2}, 2, None),
        ({"gpu": 2, "gpu_model": "A100"}, 2, "a100"),
        ({"gres": "gpu"}, 1, None),
        ({"gres": "gpu:4", "nodes": 2}, 4, None),
        ({"gres": "gpu:a100", "nodes": 2}, 1, "a100"),
        ({"gres": "gpu:1g.5gb:3"}, 3, "1g.5gb"),
        ({"gres": "nvme:1"}, 0, None),
        ({"gpu": "gpus_of(wildcards)"}, "gpus_of(wildcards)", None),
    ],
)
def test_gpus_of_a_job_and_gpus_of_a_node_are_distinguished(
    asked: dict[str, Any], gpus: Any, model: str | None
) -> None:
    one = request("train", 1, asked, 1)
    assert (one.gpus, one.gpu_model) == (gpus, model)


@pytest.mark.parametrize(
    ("asked", "mem_mb", "minutes"),
    [
        ({"mem_mb": 500, "runtime": 30}, 500, 30),
        ({"mem": "16GB", "runtime": "12h"}, 16000, 720),
        ({"mem": "1.5 TB", "runtime": "1.5 days"}, 1_500_000, 2160),
        ({"mem_mb_per_cpu": 100, "cpus_per_task": 8}, 800, None),
        ({"mem_mb": "size(input)", "runtime": "long"}, "size(input)", "long"),
    ],
)
def test_memory_and_time_are_read_as_snakemake_reads_them(asked: dict[str, Any], mem_mb: Any, minutes: Any) -> None:
    one = request("train", 1, asked, 1)
    assert (one.mem_mb, one.minutes) == (mem_mb, minutes)


def test_resources_of_a_rule_override_the_defaults(tmp_path: Path) -> None:
    found = profile(
        tmp_path,
        "default-resources: {mem_mb: 100, runtime: 7}\n"
        "set-threads: {evaluate: 3}\n"
        "set-resources:\n  evaluate:\n    mem_mb: 200 * attempt\n",
    )
    assert found.asked("evaluate") == {"mem_mb": 200, "runtime": 7, "threads": 3}
    assert found.asked("export") == {"mem_mb": 100, "runtime": 7}
    assert found.places("evaluate") == {
        "mem_mb": f"{tmp_path}/config.yaml:5 set-resources.evaluate.mem_mb",
        "runtime": f"{tmp_path}/config.yaml:1 default-resources.runtime",
        "threads": f"{tmp_path}/config.yaml:2 set-threads.evaluate",
    }


def test_lists_mean_the_same_as_mappings(tmp_path: Path) -> None:
    text = (
        "default-resources: [mem_mb=100]\nset-resources: ['evaluate:mem_mb=2 * attempt']\nset-threads: [evaluate=3]\n"
    )
    assert profile(tmp_path, text).asked("evaluate") == {"mem_mb": 2, "threads": 3}


def test_every_job_of_the_experiment_is_counted() -> None:
    study = {"trials": 5, "space": {"optimizer.lr": {"type": "float", "low": 1e-4, "high": 1e-2}}}
    swept = {"grid": {"seed": [0, 1, 2], "data.split_seed": [1, 2]}}
    assert job_counts(experiment(sweep=swept)) == {"preprocess": 2, "train": 6, "evaluate": 6, "export": 6}
    assert job_counts(experiment(sweep=swept, tune=study)) == {
        "preprocess": 3,
        "trial": 5,
        "train": 7,
        "evaluate": 7,
        "export": 7,
    }
    packed = {"pack": 4, "device": "cpu"}
    assert job_counts(experiment(sweep=swept, runtime=packed)) == {"pack": 2, "preprocess": 2}
    assert job_counts(experiment(sweep=swept, tune=study, runtime=packed)) == {
        "preprocess": 3,
        "pack": 3,
        "train": 1,
        "evaluate": 1,
        "export": 1,
    }
    on_gpus = {"pack": 4, "device": "auto"}
    assert job_counts(experiment(sweep=swept, runtime=on_gpus))["train"] == 6


def test_gpu_hours_are_jobs_times_nodes_times_gpus_times_hours(tmp_path: Path) -> None:
    text = "executor: slurm\nset-resources: {train: {gres: \"'gpu:4'\", runtime: 90}, export: {runtime: 60}}"
    whole = experiment(
        runtime={"nproc": 4, "nodes": 2}, training={"batch_size": 64}, sweep={"grid": {"seed": [1, 2, 3]}}
    )
    asked = budget.requests(whole, profile(tmp_path, text))
    assert {one.rule: one.gpu_hours for one in asked} == {"train": 36, "evaluate": 0, "export": 0, "preprocess": 0}
    assert budget.table(asked).count("36.0") == 2, "of the trainings, and of all"


def test_a_number_that_cannot_be_parsed_is_shown_as_written_and_is_no_problem(tmp_path: Path) -> None:
    text = "set-resources: {train: {slurm_partition: gpu, gpu: 'gpus(wildcards)', runtime: long}}"
    (train,) = (one for one in budget.requests(experiment(), profile(tmp_path, text)) if one.rule == "train")
    assert problems([train], cluster("sandbox")) == []
    assert train.gpu_hours is None
    assert re.search(r"gpus\(wildcards\) .* long +\?\n", budget.table([train]))


# Requests that do not fit


def test_the_shipped_profile_fits_the_sandbox() -> None:
    asked = budget.requests(config.load([ROOT / "config/config.yaml"]), budget.read_profile(ROOT / "profiles/slurm"))
    assert {one.rule for one in asked} == {"preprocess", "train", "trial", "evaluate", "export"}
    assert complaints(*asked, to="sandbox") == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"slurm_partition": "gpus"},
            "asks for the partition `gpus`, which does not exist; did you mean `gpu`? The partitions are",
        ),
        ({"slurm_partition": None}, "asks for no partition, and the cluster has no default one"),
        (
            {"slurm_partition": "preempt"},
            "`preempt`, which is in state DRAIN: it takes no jobs; partitions that are up: gpu, cpu",
        ),
        ({"runtime": 481}, "asks for 481 minutes of `gpu`, which allows 480; set `runtime` of evaluate"),
        (
            {"slurm_extra": "--exclusive --time-min=61 --signal=TERM@60"},
            r"asks for 60 minutes \(runtime\), and for no fewer than 61 \(--time-min\), which SLURM rejects; set",
        ),
        ({"slurm_extra": "--time-min 0-1:01:30"}, "no fewer than 61.5 "),
        ({"slurm_extra": "--time-min=60:30"}, "no fewer than 60.5 "),
        ({"slurm_extra": "--time-min=1-0"}, "no fewer than 1440 "),
        ({"gpu": 3}, "asks for 3 GPUs on a node of `gpu`, whose nodes have at most 2"),
        ({"gpu": 2, "gpu_model": "v100"}, "asks for 2 GPUs of the type `v100` on a node of `gpu`, whose .* at most 1"),
        ({"gpu": 1, "gpu_model": "a10"}, "the type `a10` in `gpu`; did you mean `a100`? It has: a100, v100"),
        ({"gres": "gpu:h200:1"}, "asks for GPUs of the type `h200` in `gpu`; it has: a100, v100"),
        ({"mem_mb": 12001}, "asks for 12001 MB of memory on a node of `gpu`, which gives at most 12000"),
        ({"cpus_per_task": 3}, "asks for 3 CPUs on a node of `gpu`, which gives at most 2"),
        ({"gpu": 1, "cpus_per_gpu": 3}, "asks for 3 CPUs on a node of `gpu`"),
        ({"nodes": 3}, "asks for 3 nodes of `gpu` with 0 GPUs, .* it has 3 such and a job gets at most 2"),
        ({"nodes": 2, "gres": "gpu:v100:1"}, "asks for 2 nodes of `gpu` with 1 v100 GPUs, .* it has 1 such"),
        (
            {"slurm_partition": "cpu", "gpu": 1, "cpus_per_task": 8, "mem_mb": 64000, "nodes": 2},
            "asks for 2 nodes of `cpu`",
        ),
    ],
)
def test_requests_that_a_cluster_can_never_grant_are_named(asked: dict[str, Any], said: str) -> None:
    (complaint,) = complaints(job(**asked))
    assert complaint.startswith("evaluate: ")
    assert re.search(said.replace("`?", r"`\?"), complaint), complaint


@pytest.mark.parametrize(
    "asked",
    [
        {"gpu": 2, "runtime": 480, "mem_mb": 12000, "cpus_per_task": 2},
        {"gres": "gpu:a100:2", "nodes": 2},
        {"gpu": 4, "nodes": 2},
        {"slurm_partition": "cpu", "runtime": 10**6, "mem_mb": 64000},
        {"slurm_partition": "preempt,gpu"},
        {"runtime": 481, "nodes": 3, "qos": "long"},
        {"slurm_extra": "--time-min=1:00:00"},
        {"slurm_partition": "theirs", "gpu": 99, "slurm_cluster": "other"},
    ],
)
def test_requests_that_a_cluster_can_grant_pass(asked: dict[str, Any]) -> None:
    assert complaints(job(**asked)) == []


def test_a_request_that_no_single_node_can_grant_is_named() -> None:
    asked = job(slurm_partition="preempt", gres="gpu:a100:2", mem_mb=20000)
    assert complaints(asked)[1].startswith("evaluate: asks for 2 a100 GPUs, 1 CPUs and 20000 MB on a node of `preempt`")


def test_more_ranks_than_gpus_are_named_unless_the_device_is_the_cpu(tmp_path: Path) -> None:
    found = profile(tmp_path, "set-resources:\n  train:\n    slurm_partition: gpu\n    gpu: 1\n")
    for device, expected in (("auto", 1), ("cuda", 1), ("cpu", 0)):
        whole = experiment(runtime={"nproc": 2, "device": device})
        train = [one for one in budget.requests(whole, found) if one.rule == "train"]
        told = complaints(*train, to="sandbox")
        assert len(told) == expected
        assert all("1 GPU on a node for 2 processes" in one and ":4 set-resources.train.gpu" in one for one in told)


def test_a_message_names_the_place_to_change(tmp_path: Path) -> None:
    path = tmp_path / "wide.yaml"
    path.write_text("name: wide\nruntime:\n  nproc: 9\n  nodes: 7\n")
    found = profile(tmp_path, "set-resources:\n  train:\n    slurm_partition: gpu\n    runtime: 9000\n")
    whole = config.load([path])
    (train,) = (one for one in budget.requests(whole, found) if one.rule == "train")
    time, cpus = complaints(train, to="sandbox")
    _, nodes = complaints(replace(train, cpus=1), to="sandbox")
    assert re.search(r"9000 minutes .* change \S+/config.yaml:4 set-resources.train.runtime \(a longer training", time)
    assert re.search(r"9 CPUs .* change \S+/wide.yaml:3 runtime.nproc", cpus)
    assert re.search(r"7 nodes .* it has 4 such; change \S+/wide.yaml:4 runtime.nodes", nodes)


# The check


def test_without_slurm_the_message_says_that_nothing_was_checked() -> None:
    def ask(arguments: Sequence[str]) -> str:
        raise LookupError("there is no SLURM on this machine")

    assert budget.check([job()], ask).startswith("NOT CHECKED against the cluster: there is no SLURM")


def test_all_problems_are_reported_at_once() -> None:
    def ask(arguments: Sequence[str]) -> str:
        return recorded("mixed", f"{arguments[-1]}s")

    assert budget.check([job()], ask) == "checked: the cluster (gpu, preempt, cpu) can grant all requests"
    with pytest.raises(ConfigError) as refused:
        budget.check([job(runtime=9999, gpu=7), job("export", slurm_partition="x")], ask)
    assert [line.split()[0] for line in str(refused.value).splitlines()] == ["evaluate:", "evaluate:", "export:"]


def test_a_message_about_a_missing_profile_lists_the_existing_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=r"profiles/slum: no such profile; available: profiles/local, profiles/slurm"):
        budget.read_profile(Path("profiles/slum"))


def test_resources_on_the_command_line_of_snakemake_override_the_profile(tmp_path: Path) -> None:
    """`--set-resources` changes the resources of the jobs, not the file."""
    profile(tmp_path, "set-resources:\n  train:\n    slurm_partition: nowhere\n")
    jobs = [("train", 3, {"slurm_partition": "gpu", "runtime": 60, "nodes": 1}, 1)]
    command = ["snakemake", "--profile", str(tmp_path), "--set-resources", "train:slurm_partition=gpu"]
    asked = budget.asked_by(jobs, experiment(), command)
    assert complaints(*asked, to="sandbox") == []
    assert asked[0].places["slurm_partition"].endswith("config.yaml:3 set-resources.train.slurm_partition")
